"""SQL of secure sessions: what their parties have sent."""

from collections.abc import Sequence
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.orm import Session

from backend.db.models import Client, ClientUpdate, SecureParty


def find_party(session: Session, update_id: UUID) -> SecureParty | None:
    """What one client has sent in the present session of its round."""
    return session.scalars(
        select(SecureParty)
        .where(SecureParty.client_update_id == update_id)
        .execution_options(populate_existing=True)
    ).one_or_none()


def find_parties(session: Session, round_id: UUID) -> Sequence[tuple[SecureParty, Client]]:
    """Everybody who announced keys, in order of client id."""
    rows = session.execute(
        select(SecureParty, Client)
        .join(ClientUpdate, SecureParty.client_update_id == ClientUpdate.id)
        .join(Client, ClientUpdate.client_id == Client.id)
        .where(ClientUpdate.round_id == round_id)
    ).all()
    return sorted(((party, client) for party, client in rows), key=lambda row: str(row[1].id))


def find_survivors(session: Session, round_id: UUID) -> list[UUID]:
    """Whose masked update is in the sum, in order of client id."""
    rows = session.scalars(
        select(ClientUpdate.client_id).where(
            ClientUpdate.round_id == round_id, ClientUpdate.aggregated_in.is_not(None)
        )
    ).all()
    return sorted(rows, key=str)
