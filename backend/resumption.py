"""Pausing a run, and going on with one that was paused or that failed.

A paused run begins nothing: no attempt, no round. What is under way may finish and counts. A failed
run goes on in the round in which it failed: updates that were accepted stay, everything else of
that round is done again from the same plans, so nothing is lost but the failure.
"""

from datetime import timedelta
from uuid import UUID

from sqlalchemy import and_, delete, func, or_, select, update
from sqlalchemy.orm import Session

from backend.barrier import settle_round
from backend.contracts.enums import (
    EventKind,
    Execution,
    RoundStatus,
    RunStatus,
    SecureStep,
    UpdateStatus,
)
from backend.contracts.jobs import CloseRound, Job, OpenRound, RunClientUpdate
from backend.contracts.round_policy import RoundPolicy
from backend.db.models import Client, ClientUpdate, Metric, Refusal, Round, Run
from backend.journal import record_event
from backend.lifecycle import OPEN_ROUNDS, change_round, change_run, change_update, lock_run
from backend.secure_steps import find_secure, new_session


def pause_run(session: Session, run_id: UUID, by: str) -> bool:
    """Lets a running run begin nothing new. False: it is not running."""
    lock_run(session, run_id)
    if not change_run(session, run_id, RunStatus.PAUSED, paused_at=func.now()):
        return False
    record_event(session, run_id, EventKind.RUN_PAUSED, f"Paused by {by}.")
    return True


def resume_run(session: Session, run_id: UUID, by: str) -> list[Job] | None:
    """Goes on with a paused or failed run; gives the jobs to send. None: it is neither."""
    run = lock_run(session, run_id)
    match run.status:
        case RunStatus.PAUSED:
            _shift_deadline(session, run)
        case RunStatus.FAILED:
            _reopen(session, run)
        case _:
            return None
    change_run(
        session,
        run_id,
        RunStatus.RUNNING,
        paused_at=None,
        ended_at=None,
        error=None,
        enqueued_at=func.now(),
    )
    record_event(session, run_id, EventKind.RUN_RESUMED, f"Resumed by {by}.")
    session.flush()
    session.refresh(run)
    return [*_waiting(session, run_id), *(settle_round(session, run_id) or _next(session, run))]


def _shift_deadline(session: Session, run: Run) -> None:
    """The time of the pause does not count."""
    session.execute(
        update(Round)
        .where(
            Round.run_id == run.id,
            Round.status == RoundStatus.OPEN,
            Round.deadline_at.is_not(None),
            ~Round.is_overdue,
        )
        .values(deadline_at=Round.deadline_at + (func.now() - run.paused_at))
    )


def _reopen(session: Session, run: Run) -> None:
    """The failed round and what was cancelled with it; nothing where no round was open."""
    failed = session.scalars(
        select(Round).where(Round.run_id == run.id, Round.status == RoundStatus.FAILED)
    ).one_or_none()
    if failed is None:
        return
    seconds = RoundPolicy.model_validate(run.round_policy).deadline_seconds
    has_deadline = failed.deadline_at is not None and seconds is not None
    deadline = func.now() + timedelta(seconds=seconds or 0) if has_deadline else None
    change_round(
        session, failed.id, RoundStatus.OPEN, is_overdue=False, closed_at=None, deadline_at=deadline
    )
    secure = find_secure(session, failed.id)
    if secure is not None and secure.step is SecureStep.UNMASKING:
        secure.step_since = func.now()
        return  # whose update came is fixed; those who told no share yet are asked again
    redone = [UpdateStatus.FAILED, UpdateStatus.REFUSED]
    if secure is not None:
        new_session(session, secure)
        redone += [UpdateStatus.ACCEPTED, UpdateStatus.DROPPED]
        _forget_measurements(session, failed)
    refusing = select(Refusal.client_id).where(Refusal.run_id == run.id)
    again = session.scalars(
        select(ClientUpdate.id)
        .join(Round, ClientUpdate.round_id == Round.id)
        .where(
            Round.run_id == run.id,
            ClientUpdate.client_id.not_in(refusing),
            or_(
                ClientUpdate.status == UpdateStatus.CANCELLED,
                and_(
                    Round.id == failed.id,
                    ClientUpdate.status.in_(redone),
                ),
            ),
        )
        .order_by(ClientUpdate.id)
    ).all()
    for update_id in again:
        change_update(
            session,
            update_id,
            UpdateStatus.PENDING,
            first_fence=ClientUpdate.fence,
            lease_expires_at=None,
            shared_sha256=None,
            late_at=None,
            stage=None,
            ended_at=None,
            error=None,
        )
    of_run = select(Round.id).where(Round.run_id == run.id)
    session.execute(
        update(ClientUpdate)
        .where(ClientUpdate.round_id.in_(of_run), ClientUpdate.aggregated_in == failed.round_number)
        .values(aggregated_in=None)
        .execution_options(synchronize_session=False)
    )


def _forget_measurements(session: Session, round_: Round) -> None:
    """Of a round that is done again by everybody, so that nothing is counted twice."""
    session.execute(
        delete(Metric).where(
            Metric.run_id == round_.run_id, Metric.round_number == round_.round_number
        )
    )


def _waiting(session: Session, run_id: UUID) -> list[Job]:
    """Jobs of managed clients; agents ask by themselves, and have as long as ever to do so."""
    rows = session.execute(
        select(ClientUpdate.id, Client.execution)
        .join(Round, ClientUpdate.round_id == Round.id)
        .join(Client, ClientUpdate.client_id == Client.id)
        .where(Round.run_id == run_id, ClientUpdate.status == UpdateStatus.PENDING)
        .order_by(ClientUpdate.id)
    ).all()
    session.execute(
        update(ClientUpdate)
        .where(ClientUpdate.id.in_([update_id for update_id, _ in rows]))
        .values(enqueued_at=func.now())
        .execution_options(synchronize_session=False)
    )
    return [
        RunClientUpdate(client_update_id=update_id)
        for update_id, execution in rows
        if execution is Execution.MANAGED
    ]


def _next(session: Session, run: Run) -> list[Job]:
    """What the run waits for besides its clients."""
    rounds = session.execute(
        select(Round.id, Round.status).where(Round.run_id == run.id, Round.status.in_(OPEN_ROUNDS))
    ).all()
    if not rounds:
        return [] if run.status.is_terminal else [OpenRound(run_id=run.id)]
    return [CloseRound(round_id=r.id) for r in rounds if r.status is RoundStatus.AGGREGATING]
