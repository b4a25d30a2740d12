"""SQL of refusals."""

from uuid import UUID

from sqlalchemy import Select, select
from sqlalchemy.orm import Session

from backend.db.models import Client, Membership, Refusal, Run


def of_client_query(client_id: UUID) -> Select[Refusal]:
    """All refusals of a client that stand."""
    return select(Refusal).where(Refusal.client_id == client_id)


def find_member(session: Session, client_id: UUID, run_id: UUID) -> Client | None:
    """The client, if it is a member of the run's federation."""
    return session.scalar(
        select(Client)
        .join(Membership, Membership.client_id == Client.id)
        .join(Run, Run.federation_id == Membership.federation_id)
        .where(Client.id == client_id, Run.id == run_id)
    )


def find_refusal(session: Session, client_id: UUID, run_id: UUID) -> Refusal | None:
    """The client's refusal of this run."""
    return session.scalar(
        select(Refusal).where(Refusal.client_id == client_id, Refusal.run_id == run_id)
    )


def find_by_id(session: Session, client_id: UUID, refusal_id: UUID) -> Refusal | None:
    """The refusal with this id, if it is the client's."""
    return session.scalar(
        select(Refusal).where(Refusal.client_id == client_id, Refusal.id == refusal_id)
    )
