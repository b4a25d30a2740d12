"""`/federations/{id}/storage`."""

from uuid import UUID

from fastapi import APIRouter

from backend.auth.dependencies import Administrator, Viewer
from backend.contracts.storage import FederationStorage, StoragePolicyChange
from backend.federation_storage import service
from backend.web.dependencies import AppSettings, DbSession

router = APIRouter(prefix="/federations/{federation_id}/storage", tags=["federations"])


@router.get("", summary="What a federation stores")
def get_storage(
    federation_id: UUID, _principal: Viewer, session: DbSession, settings: AppSettings
) -> FederationStorage:
    """Stored bytes by kind, the limit, and how long ended runs keep what."""
    return service.describe(session, federation_id, settings)


@router.patch("", summary="Change what a federation may store")
def update_storage(
    federation_id: UUID,
    body: StoragePolicyChange,
    principal: Administrator,
    session: DbSession,
    settings: AppSettings,
) -> FederationStorage:
    """Sets the given fields; null gives one back to the platform's settings."""
    return service.change_policy(session, federation_id, body, settings, principal)
