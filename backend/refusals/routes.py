"""`/clients/{id}/refusals` and `/runs/{id}/refusals`."""

from uuid import UUID

from fastapi import APIRouter, status

from backend.auth.dependencies import AnyPrincipal, Viewer, require_role_or_client
from backend.contracts.common import Page
from backend.contracts.enums import Role
from backend.contracts.refusals import Refusal, RefusalCreate
from backend.refusals import service
from backend.web.dependencies import DbSession
from backend.web.paging import Cursor, Limit

router = APIRouter(tags=["clients"])


@router.post(
    "/clients/{client_id}/refusals",
    status_code=status.HTTP_201_CREATED,
    summary="Refuse a run",
)
def refuse(
    client_id: UUID, body: RefusalCreate, principal: AnyPrincipal, session: DbSession
) -> Refusal:
    """The client takes no part in the run from now on; what it handed in before counts.

    The run goes on where its round policy lets fewer clients be enough, else it fails with the
    reason. Refusing twice gives the first refusal.
    """
    require_role_or_client(principal, Role.OPERATOR, client_id)
    return service.refuse(session, client_id, body, principal)


@router.get("/clients/{client_id}/refusals", summary="Runs that a client refuses")
def list_of_client(
    client_id: UUID,
    principal: AnyPrincipal,
    session: DbSession,
    cursor: Cursor = None,
    limit: Limit = 50,
) -> Page[Refusal]:
    """The refusals that stand, newest first; for users, and for the client itself."""
    require_role_or_client(principal, Role.VIEWER, client_id)
    return service.list_of_client(session, client_id, cursor, limit)


@router.delete(
    "/clients/{client_id}/refusals/{refusal_id}",
    status_code=status.HTTP_204_NO_CONTENT,
    summary="Withdraw a refusal",
)
def withdraw(
    client_id: UUID, refusal_id: UUID, principal: AnyPrincipal, session: DbSession
) -> None:
    """The client takes part again: before the run begins, or while it is paused or has failed."""
    require_role_or_client(principal, Role.OPERATOR, client_id)
    service.withdraw(session, client_id, refusal_id, principal)


@router.get("/runs/{run_id}/refusals", summary="Clients that refuse a run")
def list_of_run(run_id: UUID, _principal: Viewer, session: DbSession) -> list[Refusal]:
    """Who does not take part in the run, and why."""
    return service.list_of_run(session, run_id)
