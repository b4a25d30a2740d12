"""SQL of events."""

from uuid import UUID

from sqlalchemy import Select, select

from backend.db.models import Event


def of_run_query(run_id: UUID) -> Select[Event]:
    """All events of a run."""
    return select(Event).where(Event.run_id == run_id)


def between_query(run_id: UUID, after: int, until: int) -> Select[Event]:
    """The events of a run with `after < id <= until`, oldest first."""
    return of_run_query(run_id).where(Event.id > after, Event.id <= until).order_by(Event.id)
