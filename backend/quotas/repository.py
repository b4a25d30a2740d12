"""SQL that finds the federation whose traffic a request is."""

from uuid import UUID

from sqlalchemy import select
from sqlalchemy.orm import Session

from backend.db.models import Client, ClientUpdate, Comparison, Federation, Membership, Round, Run
from backend.web.quotas import Account


def find_federation(
    session: Session, parameter: str, named: UUID, member: UUID | None = None
) -> Account | None:
    """The federation to which the thing belongs that an address names.

    Args:
        session: where to read.
        parameter: of the address: `federation_id`, `run_id`, `comparison_id` or `update_id`.
        named: its value.
        member: a client; only its own federations count, so that no other one uses up their quota.
    """
    query = select(Federation.id, Federation.name)
    if member is not None:
        query = query.join(Membership, Membership.federation_id == Federation.id).where(
            Membership.client_id == member
        )
    match parameter:
        case "federation_id":
            query = query.where(Federation.id == named)
        case "run_id":
            query = query.join(Run, Run.federation_id == Federation.id).where(Run.id == named)
        case "comparison_id":
            query = query.join(Comparison, Comparison.federation_id == Federation.id).where(
                Comparison.id == named
            )
        case "update_id":
            query = (
                query.join(Run, Run.federation_id == Federation.id)
                .join(Round, Round.run_id == Run.id)
                .join(ClientUpdate, ClientUpdate.round_id == Round.id)
                .where(ClientUpdate.id == named)
            )
        case _:
            return None
    row = session.execute(query).first()
    return None if row is None else Account("federation", row.id, row.name)


def find_client(session: Session, client_id: UUID) -> Account | None:
    """The account of a client."""
    client = session.get(Client, client_id)
    return None if client is None else Account("client", client.id, client.name)
