"""SQL of metrics."""

from collections.abc import Sequence
from uuid import UUID

from sqlalchemy import Select, func, select, union_all
from sqlalchemy.orm import Session

from backend.db.models import Client, Event, Metric


def newest_journal_id(session: Session, run_id: UUID, after: int, limit: int) -> int | None:
    """The last number of at most `limit` events and metrics that follow `after`.

    One statement, so that one snapshot decides: with two, a row could come between them.
    """
    ids = union_all(
        select(Event.id).where(Event.run_id == run_id, Event.id > after),
        select(Metric.id).where(Metric.run_id == run_id, Metric.id > after),
    ).subquery()
    window = select(ids.c.id).order_by(ids.c.id).limit(limit).subquery()
    newest: int | None = session.scalar(select(func.max(window.c.id)))
    return newest


def of_run_query(run_id: UUID) -> Select[Metric]:
    """All measured values of a run."""
    return select(Metric).where(Metric.run_id == run_id)


def find_thinned(
    session: Session, run_id: UUID, after: int, until: int, max_points: int
) -> Sequence[Metric]:
    """The values with `after < id <= until`, oldest first; of those within rounds only some.

    Values within rounds are cut into `max_points` runs of equal length for each client and name,
    and the last one of each is kept; so the newest value is always there.
    """
    chosen = (Metric.run_id == run_id, Metric.id > after, Metric.id <= until)
    pieces = (
        select(
            Metric.id,
            Metric.client_id,
            Metric.name,
            func.ntile(max_points)
            .over(partition_by=(Metric.client_id, Metric.name), order_by=Metric.id)
            .label("piece"),
        )
        .where(*chosen, Metric.step.is_not(None))
        .subquery()
    )
    last_ones = select(func.max(pieces.c.id)).group_by(
        pieces.c.client_id, pieces.c.name, pieces.c.piece
    )
    return session.scalars(
        select(Metric)
        .where(*chosen, Metric.step.is_(None) | Metric.id.in_(last_ones))
        .order_by(Metric.id)
    ).all()


def find_chunk(
    session: Session, run_id: UUID, after: int, limit: int
) -> Sequence[tuple[Metric, str | None]]:
    """The next values after a number with the names of their clients, oldest first."""
    rows = session.execute(
        select(Metric, Client.name)
        .outerjoin(Client, Metric.client_id == Client.id)
        .where(Metric.run_id == run_id, Metric.id > after)
        .order_by(Metric.id)
        .limit(limit)
    ).all()
    return [(row[0], row[1]) for row in rows]
