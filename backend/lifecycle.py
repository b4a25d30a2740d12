"""The only code that changes a status: compare-and-set over tables of allowed pairs.

Locks are taken in one order everywhere: comparison, run, round, client update; several runs in
the order of their ids. They are `FOR NO KEY UPDATE`, so that foreign keys of rows written elsewhere
never wait for them.
"""

from collections.abc import Mapping, Set
from enum import StrEnum
from typing import Any, TypeVar
from uuid import UUID

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from backend.contracts.enums import (
    AttemptOutcome,
    EventKind,
    RoundStatus,
    RunStatus,
    UpdateStatus,
)
from backend.db.models import Attempt, ClientUpdate, Round, Run
from backend.journal import record_event

RUN_CHANGES: Mapping[RunStatus, Set[RunStatus]] = {
    RunStatus.CREATED: {RunStatus.QUEUED, RunStatus.CANCELLED},
    RunStatus.QUEUED: {RunStatus.RUNNING, RunStatus.FAILED, RunStatus.CANCELLED},
    RunStatus.RUNNING: {
        RunStatus.PAUSED,
        RunStatus.COMPLETED,
        RunStatus.FAILED,
        RunStatus.CANCELLED,
    },
    RunStatus.PAUSED: {
        RunStatus.RUNNING,
        RunStatus.COMPLETED,  # its delivery was under way
        RunStatus.FAILED,
        RunStatus.CANCELLED,
    },
    RunStatus.FAILED: {RunStatus.RUNNING},  # a person resumes it
}
ROUND_CHANGES: Mapping[RoundStatus, Set[RoundStatus]] = {
    RoundStatus.OPEN: {RoundStatus.AGGREGATING, RoundStatus.FAILED, RoundStatus.CANCELLED},
    RoundStatus.AGGREGATING: {RoundStatus.CLOSED, RoundStatus.FAILED, RoundStatus.CANCELLED},
    RoundStatus.FAILED: {RoundStatus.OPEN},
}
OPEN_ROUNDS = (RoundStatus.OPEN, RoundStatus.AGGREGATING)
"""A run has at most one of these."""
UPDATE_CHANGES: Mapping[UpdateStatus, Set[UpdateStatus]] = {
    UpdateStatus.PENDING: {
        UpdateStatus.TRAINING,
        UpdateStatus.FAILED,
        UpdateStatus.CANCELLED,
        UpdateStatus.DROPPED,
        UpdateStatus.DECLINED,
    },
    UpdateStatus.TRAINING: {
        UpdateStatus.PENDING,  # its attempt was lost; another one follows
        UpdateStatus.ACCEPTED,
        UpdateStatus.FAILED,
        UpdateStatus.CANCELLED,
        UpdateStatus.DROPPED,
        UpdateStatus.DECLINED,
    },
    UpdateStatus.ACCEPTED: {
        UpdateStatus.REFUSED,  # it could not be aggregated
        UpdateStatus.PENDING,  # a secure round begins anew: its masks fit no other session
    },
    UpdateStatus.DROPPED: {UpdateStatus.PENDING},  # likewise
    UpdateStatus.FAILED: {UpdateStatus.PENDING},  # its run is resumed, as in the next two
    UpdateStatus.CANCELLED: {UpdateStatus.PENDING},
    UpdateStatus.REFUSED: {UpdateStatus.PENDING},
    UpdateStatus.DECLINED: {UpdateStatus.PENDING},  # its client takes part after all
}
OPEN_UPDATES = (UpdateStatus.PENDING, UpdateStatus.TRAINING)
"""A client is at work on these, or will be."""

Status = TypeVar("Status", bound=StrEnum)


def sources(changes: Mapping[Status, Set[Status]], to: Status) -> list[Status]:
    """The states from which `to` may be reached."""
    return [source for source, targets in changes.items() if to in targets]


def lock_run(session: Session, run_id: UUID) -> Run:
    """The run, locked until the transaction ends and read anew."""
    return session.scalars(
        select(Run)
        .where(Run.id == run_id)
        .with_for_update(key_share=True)
        .execution_options(populate_existing=True)
    ).one()


def change_run(session: Session, run_id: UUID, to: RunStatus, **values: Any) -> bool:
    """Moves a run to `to`, if its state allows that; says whether it moved.

    A queued run counts as sent now, unless `enqueued_at` None says that it waits for its turn.
    """
    if to is RunStatus.QUEUED:
        values.setdefault("enqueued_at", func.now())
    if to is RunStatus.RUNNING:
        values["started_at"] = func.coalesce(Run.started_at, func.now())
    if to.is_terminal:
        values["ended_at"] = func.now()
    return _change(session, Run, run_id, sources(RUN_CHANGES, to), to, values)


def change_round(session: Session, round_id: UUID, to: RoundStatus, **values: Any) -> bool:
    """Moves a round to `to`, if its state allows that; says whether it moved."""
    if to is RoundStatus.AGGREGATING:
        values["enqueued_at"] = func.now()
    if to not in OPEN_ROUNDS:
        values["closed_at"] = func.now()
    return _change(session, Round, round_id, sources(ROUND_CHANGES, to), to, values)


def change_update(
    session: Session,
    update_id: UUID,
    to: UpdateStatus,
    *,
    only_fence: int | None = None,
    **values: Any,
) -> bool:
    """Moves a client update to `to`, if its state allows that; says whether it moved.

    Args:
        only_fence: only if this is still the newest attempt's number.
    """
    if to not in OPEN_UPDATES:
        values["ended_at"] = func.now()
    condition = [] if only_fence is None else [ClientUpdate.fence == only_fence]
    return _change(
        session, ClientUpdate, update_id, sources(UPDATE_CHANGES, to), to, values, *condition
    )


def cancel_run(session: Session, run_id: UUID, by: str) -> bool:
    """Ends a run at once; whatever still trains for it loses its lease. False: it had ended."""
    lock_run(session, run_id)
    if not change_run(session, run_id, RunStatus.CANCELLED):
        return False
    _end_open_parts(session, run_id, RoundStatus.CANCELLED, UpdateStatus.CANCELLED)
    record_event(session, run_id, EventKind.RUN_CANCELLED, f"Cancelled by {by}.")
    return True


def fail_run(session: Session, run_id: UUID, reason: str) -> bool:
    """Ends a run that cannot go on, with a sentence for people. False: it had ended."""
    lock_run(session, run_id)
    if not change_run(session, run_id, RunStatus.FAILED, error=reason):
        return False
    _end_open_parts(session, run_id, RoundStatus.FAILED, UpdateStatus.CANCELLED)
    record_event(session, run_id, EventKind.RUN_FAILED, reason)
    return True


def _end_open_parts(
    session: Session, run_id: UUID, round_to: RoundStatus, update_to: UpdateStatus
) -> None:
    open_rounds = session.scalars(
        select(Round.id)
        .where(Round.run_id == run_id, Round.status.in_(OPEN_ROUNDS))
        .order_by(Round.id)
    ).all()
    for round_id in open_rounds:
        change_round(session, round_id, round_to)
    open_updates = session.scalars(
        select(ClientUpdate.id)
        .join(Round, ClientUpdate.round_id == Round.id)
        .where(Round.run_id == run_id, ClientUpdate.status.in_(OPEN_UPDATES))
        .order_by(ClientUpdate.id)
    ).all()
    for update_id in open_updates:
        change_update(session, update_id, update_to)
    session.execute(
        update(Attempt)
        .where(Attempt.client_update_id.in_(open_updates), Attempt.outcome.is_(None))
        .values(outcome=AttemptOutcome.CANCELLED, ended_at=func.now())
    )


def _change(
    session: Session,
    table: type[Run] | type[Round] | type[ClientUpdate],
    row_id: UUID,
    allowed: list[Any],
    to: StrEnum,
    values: Mapping[str, Any],
    *conditions: Any,
) -> bool:
    result = session.execute(
        update(table)
        .where(table.id == row_id, table.status.in_(allowed), *conditions)
        .values(status=to, **values)
        .returning(table.id)
    )
    return result.first() is not None
