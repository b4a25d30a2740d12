"""Opening, doing and closing rounds: the only bridge between the database and the core.

Each job reads in one short transaction, computes with no transaction open, and writes in one short
transaction that first checks that nothing has moved. So every job may be delivered twice, and may
die at any line: what it did not commit is done again by the next delivery, with the same result.
"""

import logging
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self
from uuid import UUID

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from backend import leases
from backend.barrier import (
    LostClient,
    busy_clients,
    end_carried_updates,
    refuse_update,
    settle_round,
)
from backend.contracts.enums import (
    EventKind,
    Execution,
    RoundKind,
    RoundStatus,
    RunStatus,
)
from backend.contracts.jobs import Job, OpenRound, RunClientUpdate
from backend.contracts.round_policy import RoundPolicy
from backend.db.models import Client, ClientUpdate, Round, Run
from backend.errors import RetryableJobError
from backend.fairness import fair_update
from backend.jobs import commit_and_enqueue
from backend.journal import record_event
from backend.lifecycle import change_round, change_run, fail_run, lock_run
from backend.participation import refusals_of
from backend.secure_steps import find_secure
from backend.stopping import stop_if_learned_enough
from backend.storage.blobs import BlobCorruptedError, BlobMissingError
from worker import artifacts
from worker.attempts import TRANSIENT_ERRORS, ActiveAttempt, describe_failure
from worker.checkpoints import CheckpointFile, remove_abandoned
from worker.client_work import deliver, load_work, strategy_of, train
from worker.federated import types
from worker.federated.errors import (
    FederatedError,
    InvalidUpdateError,
    UpdateTooLargeError,
    WireError,
)
from worker.opening import Opening, plan_opening
from worker.platform import Platform
from worker.room import require_room_for_round
from worker.round_updates import RoundUpdates
from worker.scores import record_scores, round_scores
from worker.secure_rounds import begin_session, secured
from worker.specs import describe_federation

logger = logging.getLogger(__name__)

UNUSABLE_UPDATE = (InvalidUpdateError, WireError, BlobCorruptedError, BlobMissingError)
"""What says that one update cannot be aggregated: the client sent it so, or it got damaged here."""


class _RunGuard:
    """Context manager: an error in opening or closing a round ends the run with a sentence.

    Services that are away do not: the job is sent again by the sweep.
    """

    def __init__(self, platform: Platform, run_id: UUID) -> None:
        self._platform = platform
        self._run_id = run_id

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        if not isinstance(error, Exception) or isinstance(error, TRANSIENT_ERRORS):
            return False
        with self._platform.session_factory() as session:
            fail_run(session, self._run_id, describe_failure(error))
            session.commit()
        return isinstance(error, FederatedError)


def open_round(platform: Platform, run_id: UUID) -> None:
    """Opens a run's next round: plans as blobs, one update per client, jobs for managed ones.

    Where clients' models agree on codes of public texts first, that is round 0. After the last
    training round it opens the deliver round, in which every client loads the final shared state,
    is evaluated and exports its adapter. Does nothing while a round is open.
    """
    with platform.session_factory() as session:
        run = session.get_one(Run, run_id)
        clients = list(run.federation.clients)
        global_rank = run.federation.global_rank
        busy = busy_clients(session, run_id)
        refusals = refusals_of(session, run_id)
        is_open = session.scalar(
            select(func.count())
            .select_from(Round)
            .where(
                Round.run_id == run_id,
                Round.status.in_([RoundStatus.OPEN, RoundStatus.AGGREGATING]),
            )
        )
    if is_open or run.status not in {RunStatus.QUEUED, RunStatus.RUNNING}:
        return
    with _RunGuard(platform, run_id):
        require_room_for_round(platform, run)
        # The first state takes from the texts what later rounds need.
        probes = artifacts.load_probes(platform, run) if run.state_sha256 is None else ()
        federation = describe_federation(clients, global_rank, probes)
        _open(platform, run, plan_opening(run, clients, busy, refusals), federation)


def _open(platform: Platform, run: Run, opening: Opening, federation: types.FederationSpec) -> None:
    strategy = secured(platform, run, strategy_of(run, opening.kind))
    if run.state_sha256 is None:
        refusals = strategy.check(federation)
        if refusals:
            raise FederatedError(" ".join(refusal.reason for refusal in refusals))
        state = strategy.init_state(federation, run.seed)
        state_sha256 = artifacts.save_state(platform, state)
    else:
        state = artifacts.load_state(platform, run.state_sha256)
        state_sha256 = run.state_sha256
    plans = strategy.configure_round(
        state, federation, opening.number, deliver=opening.kind is RoundKind.DELIVER
    )
    blobs = {
        client.id: artifacts.save_plan(platform, plans[str(client.id)])
        for client in opening.clients
    }
    with platform.session_factory() as session:
        current = lock_run(session, run.id)
        may_go_on = current.status in {RunStatus.QUEUED, RunStatus.RUNNING}
        moved = (current.round_number, current.state_sha256) != (run.round_number, run.state_sha256)
        if moved or not may_go_on:
            return  # somebody else opened it, or the run has ended or is paused
        refusing = {refusal.client_id for refusal in refusals_of(session, run.id)}
        if refusing.intersection(client.id for client in opening.clients):
            commit_and_enqueue(session, OpenRound(run_id=run.id))  # refused in this moment
            return
        if current.status is RunStatus.QUEUED and change_run(session, run.id, RunStatus.RUNNING):
            record_event(session, run.id, EventKind.RUN_STARTED, "The run started.")
        current.round_number = opening.number
        current.state_sha256 = state_sha256
        if opening.kind is RoundKind.DELIVER:
            end_carried_updates(session, run.id)
        round_ = Round(
            run_id=run.id,
            round_number=opening.number,
            kind=opening.kind,
            quorum=opening.quorum,
            deadline_at=None if opening.deadline is None else func.now() + opening.deadline,
        )
        session.add(round_)
        session.flush()
        begin_session(session, run, round_, opening.clients)
        updates = [
            ClientUpdate(
                round_id=round_.id,
                client_id=client.id,
                plan_sha256=blobs[client.id],
                enqueued_at=func.now(),
            )
            for client in opening.clients
        ]
        session.add_all(updates)
        record_event(
            session,
            run.id,
            EventKind.ROUND_OPENED,
            opening.sentence(),
            round_number=opening.number,
        )
        session.flush()
        jobs: list[Job] = [
            RunClientUpdate(client_update_id=update.id)
            for update, client in zip(updates, opening.clients, strict=True)
            if client.execution is Execution.MANAGED
        ]
        commit_and_enqueue(session, *jobs, *settle_round(session, run.id))


def run_client_update(
    platform: Platform,
    client_update_id: UUID,
    worker: str,
    is_stopping: Callable[[], bool] = lambda: False,
) -> None:
    """Does one client's part of a round, that whose turn it is; does nothing if none waits.

    An attempt goes on where the last one on this machine was, and gives the same bits.

    Args:
        platform: the services.
        client_update_id: the one of the job, done where no other federation or run has the turn.
        worker: name of this worker, for people.
        is_stopping: asked about every step; when true, the update is given back.
    """
    with platform.session_factory() as session:
        chosen = fair_update(session, client_update_id)
        claim = leases.claim(session, chosen, worker, platform.settings.lease_seconds)
        session.commit()
    if claim is None:
        logger.info("client update %s is not waiting: nothing to do", client_update_id)
        return
    remove_abandoned(platform.settings)
    checkpoint = CheckpointFile(platform.settings, claim.client_update_id)
    with ActiveAttempt(platform, claim, is_stopping) as attempt:
        work = load_work(platform, claim, attempt, checkpoint)
        if work.plan.kind is RoundKind.DELIVER:
            result = deliver(platform, work)
        else:
            result = train(platform, work)
        attempt.finish(result)
        checkpoint.remove()


def close_round(platform: Platform, round_id: UUID) -> None:
    """Aggregates a round whose updates are all in, and sends the job that opens the next.

    After the deliver round it completes the run. Does nothing if the round is already closed.
    """
    with platform.session_factory() as session:
        round_ = session.get_one(Round, round_id)
        run = session.get_one(Run, round_.run_id)
        clients = list(run.federation.clients)
        global_rank = run.federation.global_rank
    if round_.status is not RoundStatus.AGGREGATING:
        return
    with _RunGuard(platform, run.id):
        if round_.kind is RoundKind.DELIVER:
            _complete(platform, run, round_)
        else:
            is_gauge = round_.kind is RoundKind.GAUGE
            probes = artifacts.load_probes(platform, run) if is_gauge else ()
            _aggregate(platform, run, round_, describe_federation(clients, global_rank, probes))


def _aggregate(
    platform: Platform, run: Run, round_: Round, federation: types.FederationSpec
) -> None:
    if run.state_sha256 is None:
        raise RetryableJobError(f"run {run.id} has no state yet")
    strategy = secured(platform, run, strategy_of(run, round_.kind))
    state = artifacts.load_state(platform, run.state_sha256)
    exponent = RoundPolicy.model_validate(run.round_policy).staleness_exponent
    updates = RoundUpdates(platform, round_, federation, exponent)
    start = time.monotonic()
    try:
        next_state, report = strategy.aggregate(state, federation, updates)
    except UNUSABLE_UPDATE as error:
        _refuse(platform, round_, updates.current, error)
        return
    state_sha256 = artifacts.save_state(platform, next_state)
    values = {**report.values, "seconds_aggregate": time.monotonic() - start}
    stale = [age for age in updates.staleness.values() if age > 0]
    if stale:
        values |= {"stale_updates": float(len(stale)), "largest_staleness": float(max(stale))}
    is_training = round_.kind is RoundKind.TRAIN
    scores = round_scores(run, state, federation, updates, report) if is_training else {}
    with platform.session_factory() as session:
        current = lock_run(session, run.id)
        if not change_round(session, round_.id, RoundStatus.CLOSED, report=values):
            return  # another delivery of this job was first, or the run has ended
        record_scores(session, run.id, round_.round_number, scores)
        current.state_sha256 = state_sha256
        current.enqueued_at = func.now()
        record_event(
            session,
            run.id,
            EventKind.ROUND_AGGREGATED,
            _aggregated_text(round_, report.num_clients),
            round_number=round_.round_number,
            report=values,
        )
        if is_training:
            stop_if_learned_enough(session, current)
        commit_and_enqueue(session, OpenRound(run_id=run.id))


def _aggregated_text(round_: Round, num_clients: int) -> str:
    if round_.kind is RoundKind.GAUGE:
        return f"The models of {num_clients} clients agreed on common codes."
    return f"Round {round_.round_number}: {num_clients} updates aggregated."


def _refuse(
    platform: Platform, round_: Round, sender: types.ClientSpec | None, error: Exception
) -> None:
    """Goes on without an update that cannot be aggregated, or ends the run; shows whose it is."""
    reason, is_too_large = str(error), isinstance(error, UpdateTooLargeError)
    if sender is not None:
        reason = f"The update of {sender.name} in round {round_.round_number} was refused: {reason}"
    with platform.session_factory() as session:
        if lock_run(session, round_.run_id).status.is_terminal:
            return
        record_event(
            session,
            round_.run_id,
            EventKind.UPDATE_REFUSED,
            reason,
            client_id=None if sender is None else UUID(sender.client_id),
            round_number=round_.round_number,
            code="update_norm_exceeded" if is_too_large else "update_unusable",
        )
        if sender is None or find_secure(session, round_.id) is not None:
            # Whose update is in a secure sum is fixed: without one of them the masks do not cancel.
            fail_run(session, round_.run_id, reason)
            session.commit()
            return
        lost = LostClient(UUID(sender.client_id), sender.name, reason)
        commit_and_enqueue(session, *refuse_update(session, round_, lost))


def _complete(platform: Platform, run: Run, round_: Round) -> None:
    with platform.session_factory() as session:
        lock_run(session, run.id)
        if change_round(session, round_.id, RoundStatus.CLOSED) and change_run(
            session, run.id, RunStatus.COMPLETED
        ):
            record_event(
                session,
                run.id,
                EventKind.RUN_COMPLETED,
                f"Completed after {round_.round_number - 1} rounds; "
                f"{_adapters_text(session, round_.id)}",
            )
        session.commit()


def _adapters_text(session: Session, round_id: UUID) -> str:
    missing = session.scalars(
        select(Client.name)
        .join(ClientUpdate, ClientUpdate.client_id == Client.id)
        .where(ClientUpdate.round_id == round_id, ClientUpdate.adapter_sha256.is_(None))
        .order_by(Client.name)
    ).all()
    if not missing:
        return "every client's adapter is ready."
    return f"the adapters are ready, except of {', '.join(missing)}."
