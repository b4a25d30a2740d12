"""SQL of runs, their rounds and the adapters they made."""

from collections.abc import Sequence
from uuid import UUID

from sqlalchemy import Select, select
from sqlalchemy.orm import Session, joinedload

from backend.db.models import Blob, Client, ClientUpdate, Round, Run


def find_run(session: Session, run_id: UUID) -> Run | None:
    """The run with this id."""
    return session.get(Run, run_id)


def of_federation_query(federation_id: UUID) -> Select[Run]:
    """All runs of a federation."""
    return select(Run).where(Run.federation_id == federation_id)


def find_rounds(session: Session, run_id: UUID, from_round: int) -> Sequence[Round]:
    """The rounds from a number on, in their order."""
    return session.scalars(
        select(Round)
        .where(Round.run_id == run_id, Round.round_number >= from_round)
        .order_by(Round.round_number)
    ).all()


def find_updates(session: Session, round_ids: list[UUID]) -> Sequence[ClientUpdate]:
    """The client updates of these rounds with their clients, in the order of the clients' names."""
    return session.scalars(
        select(ClientUpdate)
        .join(Client, ClientUpdate.client_id == Client.id)
        .where(ClientUpdate.round_id.in_(round_ids))
        .options(joinedload(ClientUpdate.client))
        .order_by(Client.name)
    ).all()


def adapters_query(run_id: UUID) -> Select[ClientUpdate, Client, Blob]:
    """The adapters of a run: client updates that exported one."""
    return (
        select(ClientUpdate, Client, Blob)
        .join(Round, ClientUpdate.round_id == Round.id)
        .join(Client, ClientUpdate.client_id == Client.id)
        .join(Blob, ClientUpdate.adapter_sha256 == Blob.sha256)
        .where(Round.run_id == run_id)
    )
