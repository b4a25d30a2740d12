"""Events and metrics of a run, numbered in the order in which their transactions commit.

A live page asks for "everything after number N". Plain sequence numbers would lose rows: a
transaction may take number 7, another take 8 and commit first, and a reader that has seen 8 never
asks for 7. So rows wait in the session until commit, and are written under an advisory lock per
run: it is the last lock that a transaction takes, hence it cannot cause a deadlock.
"""

from collections.abc import Mapping
from typing import Any
from uuid import UUID

from sqlalchemy import event, func, select
from sqlalchemy.orm import Session

from backend.contracts.enums import EventKind
from backend.contracts.metrics import MetricName
from backend.db.models import Event, Metric

_PENDING = "journal"


def record_event(
    session: Session,
    run_id: UUID,
    kind: EventKind,
    message: str,
    *,
    client_id: UUID | None = None,
    round_number: int | None = None,
    **data: Any,
) -> None:
    """Adds an event that leaves with the commit; `data` must be JSON values."""
    _append(
        session,
        Event(
            run_id=run_id,
            kind=kind,
            message=message,
            client_id=client_id,
            round_number=round_number,
            data=data,
        ),
    )


def record_metrics(
    session: Session,
    run_id: UUID,
    client_id: UUID | None,
    round_number: int,
    values: Mapping[MetricName, float],
    *,
    step: int | None = None,
) -> None:
    """Adds measured values that leave with the commit; `step` None: of the whole round."""
    for name, value in values.items():
        _append(
            session,
            Metric(
                run_id=run_id,
                client_id=client_id,
                round_number=round_number,
                step=step,
                name=name,
                value=value,
            ),
        )


def _append(session: Session, row: Event | Metric) -> None:
    if not session.in_transaction():
        session.begin()  # or a rollback would have nothing to end, and would not reach us
    session.info.setdefault(_PENDING, []).append(row)


@event.listens_for(Session, "before_commit")
def _write_pending(session: Session) -> None:
    rows: list[Event | Metric] = session.info.pop(_PENDING, [])
    if not rows:
        return
    session.flush()  # everything else first, so that its locks come before ours
    for run_id in sorted({row.run_id for row in rows}):
        key = int.from_bytes(run_id.bytes[8:], "big", signed=True)
        session.execute(select(func.pg_advisory_xact_lock(key)))
    for row in rows:  # one by one: a batch may number its rows in any order
        session.add(row)
        session.flush()


@event.listens_for(Session, "after_soft_rollback")
def _forget_pending(session: Session, _previous: object) -> None:
    session.info.pop(_PENDING, None)
