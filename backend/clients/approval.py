"""Clients that wait until an operator lets them take part."""

from uuid import UUID

from sqlalchemy.orm import Session

from backend.audit import record_audit
from backend.auth.principals import UserPrincipal
from backend.clients import repository
from backend.contracts.clients import Client
from backend.db import models
from backend.errors import NotFoundError
from backend.federations.joining import join


def approve(session: Session, client_id: UUID, actor: UserPrincipal) -> Client:
    """Lets a pending client take part, in its key's federation if that has one; twice is harmless.

    Raises:
        NotFoundError: no such client.
        ConflictError: a run of the federation goes on.
        InvalidError: its rank is above the federation's global rank.
    """
    client = repository.lock_client(session, client_id)
    if client is None:
        raise NotFoundError(f"There is no client {client_id}.")
    if client.is_pending:
        client.is_pending = False
        key = session.get_one(models.EnrolmentKey, client.enrolment_key_id)
        if key.federation_id is not None:
            join(session, key.federation_id, client)
        record_audit(session, actor, "client.approve", client_id)
        session.flush()
    return Client.model_validate(client)
