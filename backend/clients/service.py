"""Clients that have joined: what is known of them, their credentials and their data sets."""

from uuid import UUID

from sqlalchemy.orm import Session

from backend.audit import record_audit
from backend.auth.principals import Actor, UserPrincipal
from backend.auth.service import issue_credential, revoke_credentials
from backend.auth.tenancy import clients_with
from backend.clients import repository
from backend.contracts.clients import Client, ClientRegistered
from backend.contracts.common import Page
from backend.contracts.datasets import UploadedDataset
from backend.contracts.enums import Role
from backend.db import models
from backend.errors import ConflictError, NotFoundError
from backend.web.paging import fetch_page


def get_client(session: Session, client_id: UUID) -> Client:
    """One client.

    Raises:
        NotFoundError: no such client.
    """
    return Client.model_validate(_existing(repository.find_client(session, client_id), client_id))


def find_operable(
    session: Session, client_ids: list[UUID], actor: UserPrincipal
) -> list[models.Client]:
    """Those of the clients that exist and whose operator this user is, as rows."""
    return repository.find_clients(session, client_ids, clients_with(actor, Role.OPERATOR))


def list_clients(
    session: Session, principal: UserPrincipal, cursor: UUID | None, limit: int
) -> Page[Client]:
    """All clients that a user may see, newest first."""
    return fetch_page(
        session,
        repository.clients_query().where(clients_with(principal, Role.VIEWER)),
        models.Client.id,
        cursor,
        limit,
        Client.model_validate,
    )


def rotate_credential(session: Session, client_id: UUID, actor: Actor) -> ClientRegistered:
    """A new credential; the old ones stop working at once.

    Raises:
        NotFoundError: no such client.
    """
    client = _existing(repository.lock_client(session, client_id), client_id)
    revoke_credentials(session, client_id)
    credential = issue_credential(session, client)
    record_audit(session, actor, "client.rotate_credential", client_id)
    return ClientRegistered(client=Client.model_validate(client), credential=credential)


def revoke_credential(session: Session, client_id: UUID, actor: Actor) -> None:
    """Locks a client out until it gets a new credential; doing it twice is harmless.

    Raises:
        NotFoundError: no such client.
    """
    _existing(repository.lock_client(session, client_id), client_id)
    if revoke_credentials(session, client_id):
        record_audit(session, actor, "client.revoke_credential", client_id)


def set_dataset(
    session: Session, client_id: UUID, dataset: UploadedDataset, actor: Actor
) -> Client:
    """Makes an uploaded data set the client's own.

    Raises:
        NotFoundError: no such client.
        ConflictError: a run of the client goes on.
    """
    client = _existing(repository.lock_client(session, client_id), client_id)
    run_id = repository.find_active_run(session, client_id)
    if run_id is not None:
        raise ConflictError(
            f"Run {run_id} trains with the data set of {client.name} now. Wait for its end or "
            "cancel it, then upload again.",
            code="dataset_in_use",
        )
    client.dataset = dataset.model_dump(mode="json")
    record_audit(session, actor, "client.set_dataset", client_id, sha256=dataset.sha256)
    session.flush()
    return Client.model_validate(client)


def _existing(client: models.Client | None, client_id: UUID) -> models.Client:
    if client is None:
        raise NotFoundError(f"There is no client {client_id}.")
    return client
