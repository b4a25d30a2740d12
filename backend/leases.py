"""Attempts at client updates: who may work on one, until when, and how it ends.

An attempt holds a lease (until a time that heartbeats move) and a fencing number (counted up with
each attempt). A result counts only while both are valid, so a worker that was thought dead and
comes back cannot overwrite anything.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from backend.barrier import LostClient, settle_round
from backend.contracts.enums import (
    AttemptOutcome,
    EventKind,
    Execution,
    RunStatus,
    UpdateStatus,
)
from backend.contracts.jobs import Job, RunClientUpdate
from backend.contracts.metrics import MetricName
from backend.db.models import Attempt, Client, ClientUpdate, Round, Run
from backend.derived_metrics import derived_metrics
from backend.journal import record_event, record_metrics
from backend.lifecycle import change_update, lock_run


@dataclass(frozen=True, slots=True)
class Claim:
    """The right to do one client update, with what it belongs to."""

    client_update_id: UUID
    fence: int
    round_id: UUID
    round_number: int
    run_id: UUID
    client_id: UUID
    client_name: str


@dataclass(frozen=True, slots=True)
class Result:
    """What a finished attempt hands in; blobs by their SHA-256."""

    metrics: Mapping[MetricName, float]
    shared_sha256: str | None = None
    private_sha256: str | None = None
    adapter_sha256: str | None = None
    signature: str | None = None
    key_fingerprint: str | None = None  # of the key that signed


def claim(
    session: Session, client_update_id: UUID, worker: str, lease_seconds: float
) -> Claim | None:
    """Begins the next attempt; None when the update is not waiting (a job delivered twice).

    None too while the run is paused.
    """
    is_paused = session.scalar(
        select(Run.status == RunStatus.PAUSED)
        .join(Round, Round.run_id == Run.id)
        .join(ClientUpdate, ClientUpdate.round_id == Round.id)
        .where(ClientUpdate.id == client_update_id)
    )
    if is_paused:
        return None
    moved = change_update(
        session,
        client_update_id,
        UpdateStatus.TRAINING,
        fence=ClientUpdate.fence + 1,
        lease_expires_at=func.now() + timedelta(seconds=lease_seconds),
        started_at=func.now(),
        stage=None,
        step=0,
        num_steps=0,
        error=None,
    )
    if not moved:
        return None
    row = session.execute(
        select(ClientUpdate.fence, Round, Client)
        .join(Round, ClientUpdate.round_id == Round.id)
        .join(Client, ClientUpdate.client_id == Client.id)
        .where(ClientUpdate.id == client_update_id)
    ).one()
    fence, round_, client = row
    session.add(Attempt(client_update_id=client_update_id, number=fence, worker=worker))
    client.last_seen_at = func.now()
    record_event(
        session,
        round_.run_id,
        EventKind.ATTEMPT_STARTED,
        f"{client.name} began round {round_.round_number}"
        + (f", attempt {fence}." if fence > 1 else "."),
        client_id=client.id,
        round_number=round_.round_number,
        attempt=fence,
        worker=worker,
    )
    return Claim(
        client_update_id=client_update_id,
        fence=fence,
        round_id=round_.id,
        round_number=round_.round_number,
        run_id=round_.run_id,
        client_id=client.id,
        client_name=client.name,
    )


def heartbeat(
    session: Session,
    claim: Claim,
    lease_seconds: float,
    *,
    stage: str,
    step: int,
    num_steps: int,
) -> bool:
    """Moves the lease forward and shows how far the work is. False: the claim is lost; stop."""
    held = session.execute(
        update(ClientUpdate)
        .where(
            ClientUpdate.id == claim.client_update_id,
            ClientUpdate.fence == claim.fence,
            ClientUpdate.status == UpdateStatus.TRAINING,
        )
        .values(
            lease_expires_at=func.now() + timedelta(seconds=lease_seconds),
            stage=stage,
            step=step,
            num_steps=num_steps,
        )
        .returning(ClientUpdate.id)
    ).first()
    if held is None:
        return False
    session.execute(update(Attempt).where(*_attempt_of(claim)).values(heartbeat_at=func.now()))
    session.execute(
        update(Client).where(Client.id == claim.client_id).values(last_seen_at=func.now())
    )
    return True


def accept(session: Session, claim: Claim, result: Result) -> list[Job] | None:
    """Takes a result in; gives the jobs to send after the commit. None: the claim is lost.

    A result that comes after its round closed is not taken either, but the run page lists it as
    late: commit then too.
    """
    lock_run(session, claim.run_id)
    if not change_update(
        session,
        claim.client_update_id,
        UpdateStatus.ACCEPTED,
        only_fence=claim.fence,
        shared_sha256=result.shared_sha256,
        private_sha256=result.private_sha256,
        adapter_sha256=result.adapter_sha256,
        signature=result.signature,
        key_fingerprint=result.key_fingerprint,
    ):
        _record_late(session, claim)
        return None
    _end_attempt(session, claim, AttemptOutcome.ACCEPTED)
    derived = derived_metrics(session, claim.client_update_id, result.metrics)
    metrics = {**result.metrics, **derived}
    record_metrics(session, claim.run_id, claim.client_id, claim.round_number, metrics)
    kind = EventKind.UPDATE_ACCEPTED if result.adapter_sha256 is None else EventKind.ADAPTER_READY
    sentence = "finished" if result.adapter_sha256 is None else "has its adapter, after"
    record_event(
        session,
        claim.run_id,
        kind,
        f"{claim.client_name} {sentence} round {claim.round_number}.",
        client_id=claim.client_id,
        round_number=claim.round_number,
        metrics={name.value: value for name, value in metrics.items()},
    )
    return settle_round(session, claim.run_id)


def fail(session: Session, claim: Claim, reason: str) -> list[Job]:
    """Ends an attempt that met an error which another try would meet again.

    The round goes on without the client if it can, else the run ends. Gives the jobs to send.
    """
    lock_run(session, claim.run_id)
    if not change_update(
        session, claim.client_update_id, UpdateStatus.FAILED, only_fence=claim.fence, error=reason
    ):
        return []
    _end_attempt(session, claim, AttemptOutcome.FAILED, error=reason)
    _record_failed_attempt(session, claim, EventKind.ATTEMPT_FAILED, reason)
    sentence = f"{claim.client_name} failed: {reason}"
    return settle_round(
        session, claim.run_id, LostClient(claim.client_id, claim.client_name, sentence)
    )


def abandon(session: Session, client_update_id: UUID, hours: float) -> list[Job]:
    """Gives up an update for which no agent asked in so many hours; gives the jobs to send."""
    round_, client = session.execute(
        select(Round, Client)
        .join(ClientUpdate, ClientUpdate.round_id == Round.id)
        .join(Client, ClientUpdate.client_id == Client.id)
        .where(ClientUpdate.id == client_update_id)
    ).one()
    lock_run(session, round_.run_id)
    reason = f"its agent asked for no work in {hours:g} hours"
    abandoned = session.scalar(
        select(ClientUpdate.id).where(
            ClientUpdate.id == client_update_id,
            ClientUpdate.status == UpdateStatus.PENDING,
            ClientUpdate.enqueued_at < func.now() - timedelta(hours=hours),
        )
    )
    if abandoned is None or not change_update(
        session, client_update_id, UpdateStatus.FAILED, error=reason
    ):
        return []
    sentence = (
        f"The agent of {client.name} asked for no work in {hours:g} hours. Start it with "
        "`python -m worker.agent run`, then start a new run."
    )
    return settle_round(session, round_.run_id, LostClient(client.id, client.name, sentence))


def expire(session: Session, client_update_id: UUID, max_attempts: int) -> list[Job]:
    """Gives up an attempt whose lease ran out; gives the job of the next one.

    After `max_attempts` the update fails, so that nothing waits for ever: the round goes on
    without the client if it can, else the run fails.
    """
    row = session.execute(
        select(Round, ClientUpdate.fence, ClientUpdate.first_fence, Client)
        .join(ClientUpdate, ClientUpdate.round_id == Round.id)
        .join(Client, ClientUpdate.client_id == Client.id)
        .where(ClientUpdate.id == client_update_id)
    ).one()
    round_, fence, first_fence, client = row
    lock_run(session, round_.run_id)
    expired = session.scalar(
        select(ClientUpdate.id).where(
            ClientUpdate.id == client_update_id,
            ClientUpdate.fence == fence,
            ClientUpdate.status == UpdateStatus.TRAINING,
            ClientUpdate.lease_expires_at < func.now(),
        )
    )
    if expired is None:
        return []
    lost = Claim(
        client_update_id,
        fence,
        round_.id,
        round_.round_number,
        round_.run_id,
        client.id,
        client.name,
    )
    reason = f"no sign of life from attempt {fence}"
    _end_attempt(session, lost, AttemptOutcome.EXPIRED, error=reason)
    num_lost = session.scalar(
        select(func.count())
        .select_from(Attempt)
        .where(
            Attempt.client_update_id == client_update_id,
            Attempt.outcome == AttemptOutcome.EXPIRED,
            Attempt.number > first_fence,
        )
    )
    if num_lost is not None and num_lost >= max_attempts:
        change_update(
            session, client_update_id, UpdateStatus.FAILED, only_fence=fence, error=reason
        )
        _record_failed_attempt(session, lost, EventKind.ATTEMPT_EXPIRED, reason)
        sentence = (
            f"{client.name} gave no sign of life in {num_lost} attempts at round "
            f"{round_.round_number}. Look at the worker's log, then start a new run."
        )
        return settle_round(session, round_.run_id, LostClient(client.id, client.name, sentence))
    _wait_again(session, lost)
    _record_failed_attempt(session, lost, EventKind.ATTEMPT_EXPIRED, reason + "; trying again")
    if client.execution is Execution.REMOTE:
        return []  # its agent asks for work by itself
    return [RunClientUpdate(client_update_id=client_update_id)]


def release(session: Session, claim: Claim) -> list[Job]:
    """Gives an update back because the worker was told to stop; gives the job of the next try."""
    lock_run(session, claim.run_id)
    if not _wait_again(session, claim):
        return []
    _end_attempt(session, claim, AttemptOutcome.RELEASED)
    return [RunClientUpdate(client_update_id=claim.client_update_id)]


def _wait_again(session: Session, claim: Claim) -> bool:
    return change_update(
        session,
        claim.client_update_id,
        UpdateStatus.PENDING,
        only_fence=claim.fence,
        stage=None,
        enqueued_at=func.now(),
        lease_expires_at=None,
    )


def _record_late(session: Session, claim: Claim) -> None:
    """Lists a result that came after its round had closed without it, once."""
    late = session.scalar(
        update(ClientUpdate)
        .where(
            ClientUpdate.id == claim.client_update_id,
            ClientUpdate.status == UpdateStatus.DROPPED,
            ClientUpdate.fence == claim.fence,
            ClientUpdate.late_at.is_(None),
        )
        .values(late_at=func.now())
        .returning(ClientUpdate.id)
    )
    if late is None:
        return
    record_event(
        session,
        claim.run_id,
        EventKind.UPDATE_LATE,
        f"{claim.client_name} finished round {claim.round_number} after it had closed: its update "
        "is not used.",
        client_id=claim.client_id,
        round_number=claim.round_number,
        attempt=claim.fence,
    )


def _attempt_of(claim: Claim) -> tuple[Any, Any]:
    return (
        Attempt.client_update_id == claim.client_update_id,
        Attempt.number == claim.fence,
    )


def _end_attempt(
    session: Session, claim: Claim, outcome: AttemptOutcome, error: str | None = None
) -> None:
    session.execute(
        update(Attempt)
        .where(*_attempt_of(claim), Attempt.outcome.is_(None))
        .values(outcome=outcome, ended_at=func.now(), error=error)
    )


def _record_failed_attempt(session: Session, claim: Claim, kind: EventKind, reason: str) -> None:
    record_event(
        session,
        claim.run_id,
        kind,
        f"{claim.client_name}, round {claim.round_number}: {reason}.",
        client_id=claim.client_id,
        round_number=claim.round_number,
        attempt=claim.fence,
    )
