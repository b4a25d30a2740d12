"""Events of runs."""

from uuid import UUID

from sqlalchemy.orm import Session

from backend.contracts.common import Page
from backend.contracts.runs import Event
from backend.db import models
from backend.events import repository
from backend.web.paging import fetch_page


def list_events(session: Session, run_id: UUID, cursor: int | None, limit: int) -> Page[Event]:
    """A run's events, newest first."""
    query = repository.of_run_query(run_id)
    return fetch_page(session, query, models.Event.id, cursor, limit, Event.model_validate)


def events_between(session: Session, run_id: UUID, after: int, until: int) -> list[Event]:
    """A run's events with `after < id <= until`, oldest first."""
    rows = session.scalars(repository.between_query(run_id, after, until))
    return [Event.model_validate(row) for row in rows]
