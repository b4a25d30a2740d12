"""`/federations`."""

from uuid import UUID

from fastapi import APIRouter, status

from backend.auth.dependencies import Operator, Viewer
from backend.contracts.common import Page
from backend.contracts.federations import Federation, FederationCreate, FederationDetail
from backend.federations import service
from backend.web.dependencies import DbSession
from backend.web.paging import Cursor, Limit

router = APIRouter(tags=["federations"])


@router.post("/federations", status_code=status.HTTP_201_CREATED, summary="Make a federation")
def create_federation(
    body: FederationCreate, principal: Operator, session: DbSession
) -> FederationDetail:
    """A federation of registered clients, none of whose ranks is above the global rank."""
    return service.create_federation(session, body, principal)


@router.get("/federations", summary="All federations")
def list_federations(
    _principal: Viewer, session: DbSession, cursor: Cursor = None, limit: Limit = 50
) -> Page[Federation]:
    """All federations, newest first."""
    return service.list_federations(session, cursor, limit)


@router.get("/federations/{federation_id}", summary="One federation")
def get_federation(federation_id: UUID, _principal: Viewer, session: DbSession) -> FederationDetail:
    """One federation with its members."""
    return service.get_federation(session, federation_id)
