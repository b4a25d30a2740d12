"""SQL of federations."""

from uuid import UUID

from sqlalchemy import Select, func, select
from sqlalchemy.orm import Session

from backend.db.models import Federation, Membership, Run

_NUM_CLIENTS = (
    select(func.count())
    .select_from(Membership)
    .where(Membership.federation_id == Federation.id)
    .scalar_subquery()
)
_NUM_RUNS = (
    select(func.count())
    .select_from(Run)
    .where(Run.federation_id == Federation.id)
    .scalar_subquery()
)


def counted_query() -> Select[Federation, int, int]:
    """All federations, each with its numbers of members and of runs."""
    return select(Federation, _NUM_CLIENTS, _NUM_RUNS)


def find_counted(session: Session, federation_id: UUID) -> tuple[Federation, int, int] | None:
    """One federation with its numbers of members and of runs."""
    rows = session.execute(counted_query().where(Federation.id == federation_id))
    return next(((row[0], row[1], row[2]) for row in rows), None)


def find(session: Session, federation_id: UUID) -> Federation | None:
    """One federation."""
    return session.get(Federation, federation_id)
