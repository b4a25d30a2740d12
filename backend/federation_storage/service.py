"""What a federation stores, for people; and its own limits, which administrators set."""

from uuid import UUID

from sqlalchemy.orm import Session

from backend.audit import record_audit
from backend.auth.principals import UserPrincipal
from backend.contracts.storage import FederationStorage, StoragePolicyChange
from backend.federations.service import get_row
from backend.settings import Settings
from backend.storage.usage import policy_of, used_bytes, uses_of


def describe(session: Session, federation_id: UUID, settings: Settings) -> FederationStorage:
    """Bytes by kind, and what holds.

    Raises:
        NotFoundError: no such federation.
    """
    federation = get_row(session, federation_id)
    return FederationStorage(
        used_bytes=used_bytes(session, federation_id),
        uses=uses_of(session, federation_id),
        policy=policy_of(federation, settings),
        own=StoragePolicyChange.model_validate(federation),
    )


def change_policy(
    session: Session,
    federation_id: UUID,
    change: StoragePolicyChange,
    settings: Settings,
    actor: UserPrincipal,
) -> FederationStorage:
    """Sets the fields that are given; null gives one back to the platform's settings.

    Raises:
        NotFoundError: no such federation.
    """
    federation = get_row(session, federation_id)
    after = change.model_dump(include=change.model_fields_set)
    before = {name: getattr(federation, name) for name in after}
    for name, value in after.items():
        setattr(federation, name, value)
    record_audit(session, actor, "federation.storage", federation_id, before=before, after=after)
    session.flush()
    return describe(session, federation_id, settings)
