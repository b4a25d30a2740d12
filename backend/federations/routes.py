"""`/federations`."""

from uuid import UUID

from fastapi import APIRouter, status

from backend.auth.dependencies import Operator, Viewer
from backend.contracts.common import Page
from backend.contracts.federations import (
    Federation,
    FederationCreate,
    FederationDetail,
    FederationMember,
    FederationMemberAdd,
    FederationUpdate,
)
from backend.federations import members, service
from backend.web.dependencies import DbSession
from backend.web.paging import Cursor, Limit

router = APIRouter(tags=["federations"])


@router.post("/federations", status_code=status.HTTP_201_CREATED, summary="Make a federation")
def create_federation(
    body: FederationCreate, principal: Operator, session: DbSession
) -> FederationDetail:
    """A federation of registered clients, none of whose ranks is above the global rank.

    You become a member with the role operator.
    """
    return service.create_federation(session, body, principal)


@router.get("/federations", summary="All federations")
def list_federations(
    principal: Viewer, session: DbSession, cursor: Cursor = None, limit: Limit = 50
) -> Page[Federation]:
    """All federations that you may see, newest first."""
    return service.list_federations(session, principal, cursor, limit)


@router.get("/federations/{federation_id}", summary="One federation")
def get_federation(federation_id: UUID, _principal: Viewer, session: DbSession) -> FederationDetail:
    """One federation with its members."""
    return service.get_federation(session, federation_id)


@router.patch("/federations/{federation_id}", summary="Change a federation")
def update_federation(
    federation_id: UUID, body: FederationUpdate, principal: Operator, session: DbSession
) -> FederationDetail:
    """Who sees it (all users of the platform, or its members), and whether clients must sign."""
    return service.update_federation(session, federation_id, body, principal)


@router.get("/federations/{federation_id}/members", summary="Users of a federation")
def list_members(
    federation_id: UUID, _principal: Viewer, session: DbSession
) -> list[FederationMember]:
    """The users who work in a federation, by name."""
    return members.list_members(session, federation_id)


@router.post(
    "/federations/{federation_id}/members",
    status_code=status.HTTP_201_CREATED,
    summary="Add a user to a federation",
)
def add_member(
    federation_id: UUID, body: FederationMemberAdd, principal: Operator, session: DbSession
) -> FederationMember:
    """Lets a user see the federation, and change it as an operator; effective at once."""
    return members.add_member(session, federation_id, body, principal)


@router.delete(
    "/federations/{federation_id}/members/{user_id}",
    status_code=status.HTTP_204_NO_CONTENT,
    summary="Remove a user from a federation",
)
def remove_member(
    federation_id: UUID, user_id: UUID, principal: Operator, session: DbSession
) -> None:
    """Takes a user out of a federation; effective at once."""
    members.remove_member(session, federation_id, user_id, principal)
