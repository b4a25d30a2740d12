"""`/runs/{id}/events`."""

from uuid import UUID

from fastapi import APIRouter

from backend.auth.dependencies import Viewer
from backend.contracts.common import Page
from backend.contracts.runs import Event
from backend.events import service
from backend.runs.service import require_run
from backend.web.dependencies import DbSession
from backend.web.paging import JournalCursor, JournalLimit

router = APIRouter(tags=["runs"])


@router.get("/runs/{run_id}/events", summary="Events of a run")
def list_events(
    run_id: UUID,
    _principal: Viewer,
    session: DbSession,
    cursor: JournalCursor = None,
    limit: JournalLimit = 100,
) -> Page[Event]:
    """What happened in a run, newest first."""
    require_run(session, run_id)
    return service.list_events(session, run_id, cursor, limit)
