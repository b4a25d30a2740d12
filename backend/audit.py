"""The audit trail: who changed what, and from where. Written in the transaction of the change."""

from typing import Any
from uuid import UUID

from sqlalchemy.orm import Session

from backend.auth.principals import Actor
from backend.db.models import AuditEntry


def record_audit(
    session: Session, actor: Actor, action: str, object_id: UUID | None, **data: Any
) -> None:
    """Adds an entry that leaves with the commit.

    Args:
        session: of the change itself, so that neither is stored without the other.
        actor: who did it.
        action: object and verb, such as `federation.create`.
        object_id: what was changed.
        **data: JSON values that say more; never a secret.
    """
    session.add(
        AuditEntry(
            actor_kind=actor.kind,
            actor_id=actor.id,
            actor_name=actor.name,
            action=action,
            object_id=object_id,
            data=data,
            address=actor.address,
        )
    )
