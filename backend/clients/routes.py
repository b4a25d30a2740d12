"""`/enrolment-keys` and `/clients`."""

from uuid import UUID

from fastapi import APIRouter, Request, status

from backend.auth.dependencies import (
    AnyPrincipal,
    CurrentClient,
    Operator,
    Viewer,
    require_role_or_client,
)
from backend.clients import approval, enrolment, service
from backend.contracts.clients import (
    Client,
    ClientRegister,
    ClientRegistered,
    EnrolmentKey,
    EnrolmentKeyCreate,
    EnrolmentKeyCreated,
)
from backend.contracts.common import Page
from backend.contracts.enums import Role
from backend.web.dependencies import AppSettings, DbSession
from backend.web.paging import Cursor, Limit

router = APIRouter(tags=["clients"])
registration = APIRouter(tags=["clients"])  # needs an enrolment key instead of a token


@router.post(
    "/enrolment-keys", status_code=status.HTTP_201_CREATED, summary="Make an enrolment key"
)
def create_key(
    body: EnrolmentKeyCreate, principal: Operator, session: DbSession
) -> EnrolmentKeyCreated:
    """A key with which clients may register; the secret is in this answer only."""
    return enrolment.create_key(session, body, principal)


@router.get("/enrolment-keys", summary="All enrolment keys")
def list_keys(
    principal: Operator, session: DbSession, cursor: Cursor = None, limit: Limit = 50
) -> Page[EnrolmentKey]:
    """Your keys without their secrets, newest first; administrators see all."""
    return enrolment.list_keys(session, principal, cursor, limit)


@router.delete(
    "/enrolment-keys/{key_id}",
    status_code=status.HTTP_204_NO_CONTENT,
    summary="Revoke an enrolment key",
)
def revoke_key(key_id: UUID, principal: Operator, session: DbSession) -> None:
    """Refuses further registrations; clients that registered with the key stay."""
    enrolment.revoke_key(session, key_id, principal)


@registration.post(
    "/clients/register", status_code=status.HTTP_201_CREATED, summary="Register a client"
)
def register(
    body: ClientRegister, request: Request, session: DbSession, settings: AppSettings
) -> ClientRegistered:
    """Joins with an enrolment key instead of a token; the credential is in this answer only."""
    address = request.client.host if request.client else None
    return enrolment.register(session, body, settings, address)


@router.get("/clients", summary="All clients")
def list_clients(
    principal: Viewer, session: DbSession, cursor: Cursor = None, limit: Limit = 50
) -> Page[Client]:
    """All clients of your federations and those that joined with your keys, newest first."""
    return service.list_clients(session, principal, cursor, limit)


@router.get("/clients/me", summary="The client itself")
def get_me(client: CurrentClient, session: DbSession) -> Client:
    """The client whose credential is sent."""
    return service.get_client(session, client.id)


@router.post(
    "/clients/me/heartbeat", status_code=status.HTTP_204_NO_CONTENT, summary="Sign of life"
)
def heartbeat(_client: CurrentClient) -> None:
    """Moves `last_seen_at`, as every call with a client's credential does."""


@router.get("/clients/{client_id}", summary="One client")
def get_client(client_id: UUID, principal: AnyPrincipal, session: DbSession) -> Client:
    """One client; for users, and for the client itself."""
    require_role_or_client(principal, Role.VIEWER, client_id)
    return service.get_client(session, client_id)


@router.post("/clients/{client_id}/approval", summary="Approve a client")
def approve(client_id: UUID, principal: Operator, session: DbSession) -> Client:
    """Lets a client take part that joined with a key which requires approval.

    It joins the federation of its key, if that has one.
    """
    return approval.approve(session, client_id, principal)


@router.post("/clients/{client_id}/credential", summary="Rotate a client's credential")
def rotate_credential(client_id: UUID, principal: Operator, session: DbSession) -> ClientRegistered:
    """A new credential, shown in this answer only; the old one stops working at once."""
    return service.rotate_credential(session, client_id, principal)


@router.delete(
    "/clients/{client_id}/credential",
    status_code=status.HTTP_204_NO_CONTENT,
    summary="Revoke a client's credential",
)
def revoke_credential(client_id: UUID, principal: Operator, session: DbSession) -> None:
    """Locks a client out until it gets a new credential."""
    service.revoke_credential(session, client_id, principal)
