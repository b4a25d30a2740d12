"""Federations: who works together, and whether they fit."""

from collections.abc import Sequence
from uuid import UUID

from sqlalchemy.orm import Session

from backend.audit import record_audit
from backend.auth.principals import UserPrincipal
from backend.auth.tenancy import federations_with
from backend.clients import service as clients
from backend.contracts.clients import Client
from backend.contracts.common import FieldError, Page
from backend.contracts.enums import Role
from backend.contracts.federations import (
    Federation,
    FederationCreate,
    FederationDetail,
    FederationUpdate,
)
from backend.db import models
from backend.db.conflicts import unique
from backend.errors import InvalidError, NotFoundError
from backend.federations import repository
from backend.web.paging import fetch_page


def create_federation(
    session: Session, request: FederationCreate, actor: UserPrincipal
) -> FederationDetail:
    """A new federation of registered clients.

    Raises:
        InvalidError: an unknown client, or one whose rank is above the global rank.
        ConflictError: the name is taken.
    """
    members = _members(session, request.client_ids, actor)
    _check_ranks(members, request.global_rank)
    federation = models.Federation(
        name=request.name,
        description=request.description,
        global_rank=request.global_rank,
        visibility=request.visibility,
        require_signatures=request.require_signatures,
        created_by=actor.id,
        clients=members,
    )
    with unique(
        session,
        f"There is a federation {request.name!r} already. Choose another name.",
        "federation_name_taken",
    ):
        session.add(federation)
    session.add(
        models.FederationMember(federation_id=federation.id, user_id=actor.id, role=Role.OPERATOR)
    )
    session.expire(federation, ["clients"])  # to be read again in their usual order
    record_audit(session, actor, "federation.create", federation.id, name=federation.name)
    return get_federation(session, federation.id)


def get_federation(session: Session, federation_id: UUID) -> FederationDetail:
    """One federation with its members.

    Raises:
        NotFoundError: no such federation.
    """
    found = repository.find_counted(session, federation_id)
    if found is None:
        raise NotFoundError(f"There is no federation {federation_id}.")
    return FederationDetail(
        **_with_counts(*found).model_dump(),
        clients=[Client.model_validate(client) for client in found[0].clients],
    )


def list_federations(
    session: Session, principal: UserPrincipal, cursor: UUID | None, limit: int
) -> Page[Federation]:
    """All federations that a user may see, newest first."""
    return fetch_page(
        session,
        repository.counted_query().where(federations_with(principal, Role.VIEWER)),
        models.Federation.id,
        cursor,
        limit,
        _with_counts,
    )


def update_federation(
    session: Session, federation_id: UUID, request: FederationUpdate, actor: UserPrincipal
) -> FederationDetail:
    """Opens a federation or closes it, demands signatures or no longer; what is empty stays.

    Raises:
        NotFoundError: no such federation.
    """
    federation = get_row(session, federation_id)
    after = request.model_dump(mode="json", exclude_none=True)
    if not after:
        return get_federation(session, federation_id)
    before = {name: getattr(federation, name) for name in after}
    record_audit(session, actor, "federation.update", federation_id, before=before, after=after)
    if request.visibility is not None:
        federation.visibility = request.visibility
    if request.require_signatures is not None:
        federation.require_signatures = request.require_signatures
    session.flush()
    return get_federation(session, federation_id)


def get_row(session: Session, federation_id: UUID) -> models.Federation:
    """One federation as a row for other features.

    Raises:
        NotFoundError: no such federation.
    """
    federation = repository.find(session, federation_id)
    if federation is None:
        raise NotFoundError(f"There is no federation {federation_id}.")
    return federation


def _with_counts(federation: models.Federation, num_clients: int, num_runs: int) -> Federation:
    return Federation(
        id=federation.id,
        name=federation.name,
        description=federation.description,
        global_rank=federation.global_rank,
        visibility=federation.visibility,
        require_signatures=federation.require_signatures,
        num_clients=num_clients,
        num_runs=num_runs,
        created_at=federation.created_at,
    )


def _members(
    session: Session, client_ids: Sequence[UUID], actor: UserPrincipal
) -> list[models.Client]:
    """The clients in the order given; naming one twice is harmless."""
    found = clients.find_operable(session, list(client_ids), actor)
    by_id = {client.id: client for client in found}
    errors = [
        FieldError(
            field=f"client_ids.{index}",
            value=str(client_id),
            message=f"There is no client {client_id}. Register it first, or leave it out.",
        )
        for index, client_id in enumerate(client_ids)
        if client_id not in by_id
    ]
    if errors:
        raise InvalidError(
            " ".join(error.message for error in errors[:10]), code="unknown_client", errors=errors
        )
    _check_approved(found)
    return [by_id[client_id] for client_id in dict.fromkeys(client_ids)]


def _check_approved(members: Sequence[models.Client]) -> None:
    pending = [client.name for client in members if client.is_pending]
    if pending:
        raise InvalidError(
            f"Not approved yet: {', '.join(pending[:10])}. Approve each with "
            "POST /api/v1/clients/{id}/approval, or leave it out.",
            code="client_pending",
        )


def _check_ranks(members: Sequence[models.Client], global_rank: int) -> None:
    too_large = [client for client in members if client.lora_rank > global_rank]
    if not too_large:
        return
    needed = max(client.lora_rank for client in too_large)
    described = ", ".join(f"{client.name} has rank {client.lora_rank}" for client in too_large[:10])
    raise InvalidError(
        f"The global rank {global_rank} is below a member's LoRA rank: {described}. Set "
        f"`global_rank` to {needed} or more, or leave those clients out.",
        code="rank_above_global_rank",
        errors=[
            FieldError(
                field="global_rank",
                value=global_rank,
                message=f"{client.name} has LoRA rank {client.lora_rank}, which is above it",
            )
            for client in too_large
        ],
    )
