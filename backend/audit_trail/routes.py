"""`/audit`: who changed what; for administrators."""

from typing import Annotated

from fastapi import APIRouter, Query
from fastapi.responses import StreamingResponse

from backend.audit_trail import service
from backend.auth.dependencies import Administrator
from backend.contracts.audit import AuditEntry, AuditFilter
from backend.contracts.common import Page
from backend.web.dependencies import DbSession, Sessions
from backend.web.paging import JournalCursor, JournalLimit

router = APIRouter(prefix="/audit", tags=["audit"])


class _Listing(AuditFilter):
    cursor: JournalCursor = None
    limit: JournalLimit = 100


@router.get("", summary="Who changed what")
def list_entries(
    wanted: Annotated[_Listing, Query()], _principal: Administrator, session: DbSession
) -> Page[AuditEntry]:
    """Changes of state by people, clients and the platform, newest first; never altered."""
    return service.list_entries(session, wanted, wanted.cursor, wanted.limit)


@router.get(
    "/export.csv",
    summary="The audit trail as CSV",
    response_class=StreamingResponse,
    responses={200: {"content": {"text/csv": {}}}},
)
def export_csv(
    wanted: Annotated[AuditFilter, Query()], _principal: Administrator, sessions: Sessions
) -> StreamingResponse:
    """All entries that fulfil the conditions, oldest first."""
    return StreamingResponse(
        service.export_csv(sessions, wanted),
        media_type="text/csv",
        headers={"Content-Disposition": 'attachment; filename="fedbraid-audit.csv"'},
    )
