"""SQL of clients and enrolment keys."""

from uuid import UUID

from sqlalchemy import ColumnElement, Select, func, select, update
from sqlalchemy.orm import Session

from backend.contracts.enums import RunStatus
from backend.db.models import Client, EnrolmentKey, Federation, Membership, Run


def use_key(session: Session, secret_hash: str) -> UUID | None:
    """Counts one use of a key that may still be used; gives its id.

    One statement, so that two registrations at once cannot share the last use: the second waits
    for the first one's commit and then sees the new count.
    """
    return session.scalar(
        update(EnrolmentKey)
        .where(
            EnrolmentKey.secret_hash == secret_hash,
            EnrolmentKey.num_uses < EnrolmentKey.max_uses,
            EnrolmentKey.expires_at > func.now(),
            EnrolmentKey.revoked_at.is_(None),
        )
        .values(num_uses=EnrolmentKey.num_uses + 1)
        .returning(EnrolmentKey.id)
    )


def find_key_by_hash(session: Session, secret_hash: str) -> EnrolmentKey | None:
    """The key of a secret, whatever its state."""
    return session.scalars(
        select(EnrolmentKey).where(EnrolmentKey.secret_hash == secret_hash)
    ).one_or_none()


def revoke_key(session: Session, key_id: UUID) -> bool:
    """Ends a key; False: there is none, or it was revoked before."""
    revoked = session.scalar(
        update(EnrolmentKey)
        .where(EnrolmentKey.id == key_id, EnrolmentKey.revoked_at.is_(None))
        .values(revoked_at=func.now())
        .returning(EnrolmentKey.id)
    )
    return revoked is not None


def find_key(session: Session, key_id: UUID) -> EnrolmentKey | None:
    """The key with this id."""
    return session.get(EnrolmentKey, key_id)


def keys_query() -> Select[EnrolmentKey]:
    """All keys."""
    return select(EnrolmentKey)


def find_client(session: Session, client_id: UUID) -> Client | None:
    """The client with this id."""
    return session.get(Client, client_id)


def lock_client(session: Session, client_id: UUID) -> Client | None:
    """The client, read anew and locked until the transaction ends."""
    return session.scalars(
        select(Client)
        .where(Client.id == client_id)
        .with_for_update(key_share=True)
        .execution_options(populate_existing=True)
    ).one_or_none()


def find_clients(
    session: Session, client_ids: list[UUID], rule: ColumnElement[bool]
) -> list[Client]:
    """Those of the clients that exist and fulfil a condition."""
    return list(session.scalars(select(Client).where(Client.id.in_(client_ids), rule)))


def clients_query() -> Select[Client]:
    """All clients."""
    return select(Client)


def find_active_run(session: Session, client_id: UUID) -> UUID | None:
    """A run of this client that goes on."""
    return session.scalar(
        select(Run.id)
        .join(Federation, Run.federation_id == Federation.id)
        .join(Membership, Membership.federation_id == Federation.id)
        .where(
            Membership.client_id == client_id,
            Run.status.in_([RunStatus.QUEUED, RunStatus.RUNNING]),
        )
        .limit(1)
    )
