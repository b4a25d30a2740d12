"""What agents exchange through the platform in rounds with secure aggregation."""

from uuid import UUID

from fastapi import APIRouter, status

from backend.auth.dependencies import CurrentClient
from backend.contracts.secure_aggregation import (
    SecureKeys,
    SecureReveal,
    SecureShares,
    SecureState,
)
from backend.secure_aggregation import service
from backend.web.dependencies import DbSession

router = APIRouter(prefix="/agent/updates/{update_id}/secure", tags=["agent"])


@router.get("", summary="Look at a secure session")
def get_state(update_id: UUID, client: CurrentClient, session: DbSession) -> SecureState:
    """How far the session is, with what this client needs for its next message."""
    return service.get_state(session, client, update_id)


@router.post("/keys", status_code=status.HTTP_204_NO_CONTENT, summary="Announce keys")
def announce_keys(
    update_id: UUID, body: SecureKeys, client: CurrentClient, session: DbSession
) -> None:
    """Step 1; the same keys again change nothing, others are refused."""
    service.announce_keys(session, client, update_id, body)


@router.post("/shares", status_code=status.HTTP_204_NO_CONTENT, summary="Send encrypted shares")
def send_shares(
    update_id: UUID, body: SecureShares, client: CurrentClient, session: DbSession
) -> None:
    """Step 2; each can be read by its recipient only."""
    service.send_shares(session, client, update_id, body)


@router.post("/reveal", status_code=status.HTTP_204_NO_CONTENT, summary="Tell shares to unmask")
def reveal(update_id: UUID, body: SecureReveal, client: CurrentClient, session: DbSession) -> None:
    """Step 4; enough of them open the sum, and nothing but the sum."""
    service.reveal(session, client, update_id, body)
