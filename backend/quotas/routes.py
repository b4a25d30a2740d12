"""`/clients/{id}/usage` and `/federations/{id}/usage`."""

from uuid import UUID

from fastapi import APIRouter

from backend.auth.dependencies import AnyPrincipal, Viewer, require_role_or_client
from backend.contracts.enums import Role
from backend.contracts.quotas import QuotaUse
from backend.errors import NotFoundError
from backend.quotas.metered import QuotasInUse
from backend.quotas.repository import find_client, find_federation
from backend.web.dependencies import DbSession

router = APIRouter(tags=["quotas"])


@router.get("/clients/{client_id}/usage", summary="A client's traffic")
def get_client_usage(
    client_id: UUID, principal: AnyPrincipal, session: DbSession, quotas: QuotasInUse
) -> list[QuotaUse]:
    """Requests of this hour and bytes of this day with its credential; for the client itself too.

    Empty where the platform counts nothing, because it has no Redis.
    """
    require_role_or_client(principal, Role.VIEWER, client_id)
    account = find_client(session, client_id)
    if account is None:
        raise NotFoundError(f"There is no client {client_id}.")
    return [] if quotas is None else quotas.usage(account)


@router.get("/federations/{federation_id}/usage", summary="A federation's traffic")
def get_federation_usage(
    federation_id: UUID, _principal: Viewer, session: DbSession, quotas: QuotasInUse
) -> list[QuotaUse]:
    """Requests of this hour and bytes of this day about the federation, its runs and updates."""
    account = find_federation(session, "federation_id", federation_id)
    if account is None:
        raise NotFoundError(f"There is no federation {federation_id}.")
    return [] if quotas is None else quotas.usage(account)
