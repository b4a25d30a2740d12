"""`/clients/me/signing-key`, `/clients/{id}/signing-key(s)` and `/runs/{id}/signatures`."""

from uuid import UUID

from fastapi import APIRouter, status

from backend.auth.dependencies import (
    AnyPrincipal,
    CurrentClient,
    Operator,
    Viewer,
    require_role_or_client,
)
from backend.contracts.common import Page
from backend.contracts.enums import Role
from backend.contracts.signatures import SignedUpdate, SigningKey, SigningKeyPut
from backend.signatures import service
from backend.web.dependencies import DbSession
from backend.web.paging import Cursor, Limit

router = APIRouter(tags=["clients"])


@router.put("/clients/me/signing-key", summary="Register or rotate a signing key")
def put_key(body: SigningKeyPut, client: CurrentClient, session: DbSession) -> SigningKey:
    """From then on updates of the client count only with a signature of this key.

    A key after the first one must be signed by the one before.
    """
    return service.put_key(session, client, body)


@router.delete(
    "/clients/{client_id}/signing-key",
    status_code=status.HTTP_204_NO_CONTENT,
    summary="Retire a client's signing key",
)
def retire_key(client_id: UUID, principal: Operator, session: DbSession) -> None:
    """For a key that was lost or stolen: the client may then register another one."""
    service.retire_key(session, client_id, principal)


@router.get("/clients/{client_id}/signing-keys", summary="A client's signing keys")
def list_keys(
    client_id: UUID,
    principal: AnyPrincipal,
    session: DbSession,
    cursor: Cursor = None,
    limit: Limit = 50,
) -> Page[SigningKey]:
    """All public keys that the client ever had, newest first; for the client itself too."""
    require_role_or_client(principal, Role.VIEWER, client_id)
    return service.list_keys(session, client_id, cursor, limit)


@router.get("/runs/{run_id}/signatures", summary="Signatures of a run's updates")
def list_signatures(run_id: UUID, _principal: Viewer, session: DbSession) -> list[SignedUpdate]:
    """Text, signature and public key of every signed update that counted: verify it yourself."""
    return service.signed_updates(session, run_id)
