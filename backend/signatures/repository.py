"""SQL of signing keys and of signed updates."""

from collections.abc import Sequence
from uuid import UUID

from sqlalchemy import Row, Select, and_, exists, select
from sqlalchemy.orm import Session

from backend.contracts.enums import Execution
from backend.db.models import Client, ClientUpdate, Membership, Round, SigningKey


def lock_client(session: Session, client_id: UUID) -> Client:
    """The client, locked until the transaction ends: keys change one after the other."""
    return session.scalars(
        select(Client).where(Client.id == client_id).with_for_update(key_share=True)
    ).one()


def find_active(session: Session, client_id: UUID) -> SigningKey | None:
    """The key that verifies the client's updates now."""
    return session.scalar(
        select(SigningKey).where(SigningKey.client_id == client_id, SigningKey.retired_at.is_(None))
    )


def find_by_fingerprint(session: Session, client_id: UUID, fingerprint: str) -> SigningKey | None:
    """A key of the client, also a retired one."""
    return session.scalar(
        select(SigningKey).where(
            SigningKey.client_id == client_id, SigningKey.fingerprint == fingerprint
        )
    )


def of_client_query(client_id: UUID) -> Select[SigningKey]:
    """All keys that a client ever had."""
    return select(SigningKey).where(SigningKey.client_id == client_id)


def names_without_key(session: Session, federation_id: UUID) -> Sequence[str]:
    """Remote members of a federation that cannot sign, by name."""
    has_key = exists(
        select(SigningKey.id).where(
            SigningKey.client_id == Client.id, SigningKey.retired_at.is_(None)
        )
    )
    return session.scalars(
        select(Client.name)
        .join(Membership, Membership.client_id == Client.id)
        .where(
            Membership.federation_id == federation_id,
            Client.execution == Execution.REMOTE,
            ~has_key,
        )
        .order_by(Client.name)
    ).all()


def signed_updates(
    session: Session, run_id: UUID
) -> Sequence[Row[ClientUpdate, Round, Client, SigningKey]]:
    """The signed updates of a run with their keys, by round and name."""
    return session.execute(
        select(ClientUpdate, Round, Client, SigningKey)
        .join(Round, ClientUpdate.round_id == Round.id)
        .join(Client, ClientUpdate.client_id == Client.id)
        .join(
            SigningKey,
            and_(
                SigningKey.client_id == Client.id,
                SigningKey.fingerprint == ClientUpdate.key_fingerprint,
            ),
        )
        .where(Round.run_id == run_id, ClientUpdate.signature.is_not(None))
        .order_by(Round.round_number, Client.name)
    ).all()
