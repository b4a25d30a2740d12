"""Opening, doing and closing rounds: the only bridge between the database and the core.

Each job reads in one short transaction, computes with no transaction open, and writes in one short
transaction that first checks that nothing has moved. So every job may be delivered twice, and may
die at any line: what it did not commit is done again by the next delivery, with the same result.
"""

import logging
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self
from uuid import UUID

from pydantic import TypeAdapter
from sqlalchemy import func, select

from backend import leases
from backend.contracts.base_models import BaseModelRef
from backend.contracts.datasets import BuiltinDataset, DatasetRef, UploadedDataset
from backend.contracts.enums import (
    EventKind,
    Execution,
    RoundKind,
    RoundStatus,
    RunStatus,
)
from backend.contracts.jobs import OpenRound, RunClientUpdate
from backend.contracts.privacy import PrivacySettings
from backend.contracts.strategies import Params
from backend.contracts.training import TrainingConfig
from backend.db.models import Client, ClientUpdate, Round, Run
from backend.errors import RetryableJobError
from backend.jobs import commit_and_enqueue
from backend.journal import record_event
from backend.leases import Claim, Result
from backend.lifecycle import change_round, change_run, fail_run, lock_run
from worker import artifacts
from worker.attempts import TRANSIENT_ERRORS, ActiveAttempt, describe_failure
from worker.checkpoints import CheckpointFile, remove_abandoned
from worker.devices import training_device, weights_dtype
from worker.federated import types
from worker.federated.errors import FederatedError, InvalidUpdateError, WireError
from worker.federated.objectives.loading import load_for_task
from worker.federated.privacy.private import unpredictable_key, with_noise
from worker.federated.strategies.registry import build_strategy
from worker.federated.strategy import Strategy
from worker.federated.tasks.loading import load_dataset, open_pictures
from worker.platform import Platform
from worker.specs import describe_client, describe_federation

logger = logging.getLogger(__name__)

_PARAMS: TypeAdapter[Params] = TypeAdapter(Params)
_DATASET: TypeAdapter[BuiltinDataset | UploadedDataset] = TypeAdapter(DatasetRef)


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

    After the last training round it opens the deliver round, in which every client loads the
    final shared state, is evaluated and exports its adapter. Does nothing while a round is open.
    """
    with platform.session_factory() as session:
        run = session.get_one(Run, run_id)
        clients = list(run.federation.clients)
        global_rank = run.federation.global_rank
        is_busy = session.scalar(
            select(func.count())
            .select_from(Round)
            .where(
                Round.run_id == run_id,
                Round.status.in_([RoundStatus.OPEN, RoundStatus.AGGREGATING]),
            )
        )
    if is_busy or run.status not in {RunStatus.QUEUED, RunStatus.RUNNING}:
        return
    with _RunGuard(platform, run_id):
        federation = describe_federation(clients, global_rank)
        _open(platform, run, clients, federation)


def _open(
    platform: Platform, run: Run, clients: list[Client], federation: types.FederationSpec
) -> None:
    round_number = run.round_number + 1
    kind = RoundKind.DELIVER if round_number > run.num_rounds else RoundKind.TRAIN
    strategy = _strategy_of(run)
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
        state, federation, round_number, deliver=kind is RoundKind.DELIVER
    )
    blobs = {client_id: artifacts.save_plan(platform, plan) for client_id, plan in plans.items()}

    with platform.session_factory() as session:
        current = lock_run(session, run.id)
        if current.round_number != run.round_number or current.status.is_terminal:
            return  # somebody else opened it, or the run has ended
        if change_run(session, run.id, RunStatus.RUNNING):
            record_event(session, run.id, EventKind.RUN_STARTED, "The run started.")
        current.round_number = round_number
        current.state_sha256 = state_sha256
        round_ = Round(run_id=run.id, round_number=round_number, kind=kind)
        session.add(round_)
        session.flush()
        updates = [
            ClientUpdate(
                round_id=round_.id,
                client_id=client.id,
                plan_sha256=blobs[str(client.id)],
                enqueued_at=func.now(),
            )
            for client in clients
        ]
        session.add_all(updates)
        what = "Delivery" if kind is RoundKind.DELIVER else f"Round {round_number}"
        record_event(
            session,
            run.id,
            EventKind.ROUND_OPENED,
            f"{what} opened for {len(clients)} clients.",
            round_number=round_number,
        )
        session.flush()
        jobs = [
            RunClientUpdate(client_update_id=update.id)
            for update, client in zip(updates, clients, strict=True)
            if client.execution is Execution.MANAGED
        ]
        commit_and_enqueue(session, *jobs)


def _strategy_of(run: Run) -> Strategy:
    """The run's strategy, with noise where its settings ask for it.

    The noise of a managed client comes from the worker's secure source. An attempt that got lost
    may leave a blob with other noise, which nobody but the operator could find, who has the data.
    """
    params = _PARAMS.validate_python(run.strategy)
    noise = PrivacySettings.model_validate(run.privacy).differential_privacy
    return with_noise(build_strategy(params), params, noise, unpredictable_key)


def run_client_update(
    platform: Platform,
    client_update_id: UUID,
    worker: str,
    is_stopping: Callable[[], bool] = lambda: False,
) -> None:
    """Does one client's part of a round; does nothing if it is done or being done.

    An attempt goes on where the last one on this machine was, and gives the same bits.

    Args:
        worker: name of this worker, for people.
        is_stopping: asked about every step; when true, the update is given back.
    """
    with platform.session_factory() as session:
        claim = leases.claim(session, client_update_id, worker, platform.settings.lease_seconds)
        session.commit()
    if claim is None:
        logger.info("client update %s is not waiting: nothing to do", client_update_id)
        return
    remove_abandoned(platform.settings)
    checkpoint = CheckpointFile(platform.settings, client_update_id)
    with ActiveAttempt(platform, claim, is_stopping) as attempt:
        work = _load_work(platform, claim, attempt, checkpoint)
        if work.plan.kind is RoundKind.DELIVER:
            result = _deliver(platform, work)
        else:
            result = _train(platform, work)
        attempt.finish(result)
        checkpoint.remove()


@dataclass(frozen=True, slots=True)
class _Work:
    """Everything that one client update computes from."""

    strategy: Strategy
    plan: types.ClientPlan
    client: types.LocalClient


def _load_work(
    platform: Platform, claim: Claim, attempt: ActiveAttempt, checkpoint: CheckpointFile
) -> _Work:
    with platform.session_factory() as session:
        run = session.get_one(Run, claim.run_id)
        row = session.get_one(Client, claim.client_id)
        plan_sha256 = session.get_one(ClientUpdate, claim.client_update_id).plan_sha256
        private_sha256 = session.scalar(
            select(ClientUpdate.private_sha256)
            .join(Round, ClientUpdate.round_id == Round.id)
            .where(
                Round.run_id == run.id,
                Round.round_number == claim.round_number - 1,
                ClientUpdate.client_id == claim.client_id,
            )
        )
    if row.dataset is None:
        raise FederatedError(f"{row.name} has no data set: upload one, then start a new run.")
    training = TrainingConfig.model_validate(run.training)
    dataset = _DATASET.validate_python(row.dataset)
    open_blob = partial(artifacts.open_dataset, platform)
    data = load_dataset(dataset, row.task, open_blob)
    device = training_device()
    model, objective = load_for_task(
        BaseModelRef.model_validate(row.base_model),
        data,
        training,
        device=device,
        dtype=weights_dtype(training.precision, device),
        image_folder=open_pictures(dataset, open_blob),
    )
    private = artifacts.load_private(platform, private_sha256) if private_sha256 else None
    return _Work(
        strategy=_strategy_of(run),
        plan=artifacts.load_plan(platform, plan_sha256),
        client=types.LocalClient(
            spec=describe_client(row),
            model=model,
            objective=objective,
            data=data,
            training=training,
            private=private,
            on_progress=attempt.report,
            checkpointing=checkpoint.checkpointing(),
        ),
    )


def _train(platform: Platform, work: _Work) -> Result:
    update = work.strategy.train_client(work.plan, work.client)
    return Result(
        metrics=update.metrics,
        shared_sha256=artifacts.save_update(platform, update),
        private_sha256=artifacts.save_private(platform, update.private),
    )


def _deliver(platform: Platform, work: _Work) -> Result:
    with tempfile.TemporaryDirectory(prefix="fedbraid-") as name:
        folder = Path(name)
        metrics = work.strategy.deliver_client(work.plan, work.client, folder)
        return Result(metrics=metrics, adapter_sha256=artifacts.save_adapter(platform, folder))


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
            _aggregate(platform, run, round_, describe_federation(clients, global_rank))


def _aggregate(
    platform: Platform, run: Run, round_: Round, federation: types.FederationSpec
) -> None:
    if run.state_sha256 is None:
        raise RetryableJobError(f"run {run.id} has no state yet")
    strategy = _strategy_of(run)
    state = artifacts.load_state(platform, run.state_sha256)
    updates = _Updates(platform, round_, federation)
    start = time.monotonic()
    try:
        state, report = strategy.aggregate(state, federation, updates)
    except (InvalidUpdateError, WireError) as error:
        _refuse(platform, round_, updates.current, str(error))
        return
    state_sha256 = artifacts.save_state(platform, state)
    values = {**report.values, "seconds_aggregate": time.monotonic() - start}
    with platform.session_factory() as session:
        current = lock_run(session, run.id)
        if not change_round(session, round_.id, RoundStatus.CLOSED, report=values):
            return  # another delivery of this job was first, or the run has ended
        current.state_sha256 = state_sha256
        current.enqueued_at = func.now()
        record_event(
            session,
            run.id,
            EventKind.ROUND_AGGREGATED,
            f"Round {round_.round_number}: {report.num_clients} updates aggregated.",
            round_number=round_.round_number,
            report=values,
        )
        commit_and_enqueue(session, OpenRound(run_id=run.id))


def _refuse(
    platform: Platform, round_: Round, sender: types.ClientSpec | None, reason: str
) -> None:
    """Ends the run over an update that cannot be aggregated, and shows whose it is."""
    if sender is not None:
        reason = f"The update of {sender.name} in round {round_.round_number} was refused: {reason}"
    with platform.session_factory() as session:
        record_event(
            session,
            round_.run_id,
            EventKind.UPDATE_REFUSED,
            reason,
            client_id=None if sender is None else UUID(sender.client_id),
            round_number=round_.round_number,
        )
        if fail_run(session, round_.run_id, reason):
            session.commit()


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
                f"Completed after {run.num_rounds} rounds; every client's adapter is ready.",
            )
        session.commit()


class _Updates:
    """Updates one at a time, in order of client id: memory does not grow with their number.

    `current` is whose update was given last, for messages about what is wrong with it.
    """

    def __init__(self, platform: Platform, round_: Round, federation: types.FederationSpec) -> None:
        self._platform = platform
        self._round = round_
        self._federation = federation
        self.current: types.ClientSpec | None = None

    def __iter__(self) -> Iterator[types.ClientUpdate]:
        with self._platform.session_factory() as session:
            rows = session.execute(
                select(ClientUpdate.client_id, ClientUpdate.shared_sha256).where(
                    ClientUpdate.round_id == self._round.id
                )
            ).all()
        blobs = {str(client_id): sha256 for client_id, sha256 in rows}
        for spec in self._federation.clients:
            self.current = spec
            sha256 = blobs[spec.client_id]
            if sha256 is None:
                raise RetryableJobError(f"the update of {spec.name} is not stored")
            yield artifacts.load_update(self._platform, sha256, spec, self._round.round_number)
        self.current = None
