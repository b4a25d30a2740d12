"""Enrolment keys, and joining the platform with one."""

from datetime import UTC, datetime, timedelta
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.orm import Session

from backend.audit import record_audit
from backend.auth.principals import Actor, ClientPrincipal, UserPrincipal
from backend.auth.secrets import SecretKind, hash_secret, new_secret
from backend.auth.service import issue_credential
from backend.auth.tenancy import federations_with, keys_with
from backend.base_models.service import resolve_architecture
from backend.clients import repository
from backend.contracts.base_models import IMAGE_MODELS
from backend.contracts.clients import (
    Client,
    ClientRegister,
    ClientRegistered,
    EnrolmentKey,
    EnrolmentKeyCreate,
    EnrolmentKeyCreated,
)
from backend.contracts.common import FieldError, Page
from backend.contracts.datasets import BUILTIN_TASK_KINDS
from backend.contracts.enums import Execution, Role, TaskKind
from backend.db import models
from backend.db.conflicts import unique
from backend.errors import ForbiddenError, InvalidError, NotFoundError
from backend.federations.joining import join
from backend.settings import Settings
from backend.signatures.service import add_key
from backend.web.paging import fetch_page


def create_key(
    session: Session, request: EnrolmentKeyCreate, actor: UserPrincipal
) -> EnrolmentKeyCreated:
    """A new enrolment key; its secret is in this answer only.

    Raises:
        InvalidError: no such federation, or the actor is no operator of it.
    """
    if request.federation_id is not None:
        _require_operator(session, request.federation_id, actor)
    secret = new_secret(SecretKind.ENROLMENT)
    key = models.EnrolmentKey(
        secret_hash=hash_secret(secret),
        label=request.label,
        federation_id=request.federation_id,
        requires_approval=request.requires_approval,
        max_uses=request.max_uses,
        expires_at=datetime.now(UTC) + timedelta(hours=request.expires_in_hours),
        created_by=actor.id,
    )
    session.add(key)
    session.flush()
    session.refresh(key)
    record_audit(session, actor, "enrolment_key.create", key.id, label=key.label)
    return EnrolmentKeyCreated(key=EnrolmentKey.model_validate(key), secret=secret)


def list_keys(
    session: Session, principal: UserPrincipal, cursor: UUID | None, limit: int
) -> Page[EnrolmentKey]:
    """All enrolment keys that a user may see, newest first."""
    return fetch_page(
        session,
        repository.keys_query().where(keys_with(principal, Role.OPERATOR)),
        models.EnrolmentKey.id,
        cursor,
        limit,
        EnrolmentKey.model_validate,
    )


def revoke_key(session: Session, key_id: UUID, actor: Actor) -> None:
    """Refuses further registrations with a key; revoking twice is harmless.

    Raises:
        NotFoundError: no such key.
    """
    if repository.revoke_key(session, key_id):
        record_audit(session, actor, "enrolment_key.revoke", key_id)
    elif repository.find_key(session, key_id) is None:
        raise NotFoundError(f"There is no enrolment key {key_id}.")


def register(
    session: Session, request: ClientRegister, settings: Settings, address: str | None
) -> ClientRegistered:
    """A new client with its credential.

    The key is checked and counted first, so that nobody without one learns anything; when a later
    check refuses, the transaction takes the use back.

    Raises:
        ForbiddenError: the key is unknown, used up, expired or revoked; the code tells which.
        InvalidError: the base model, the rank or the data set cannot be used, or what a remote
            client must declare is missing.
        ConflictError: the name is taken, or the key's federation has a run that goes on.
    """
    key_id = _use_key(session, request.enrolment_key.get_secret_value())
    _check_dataset(request)
    _check_model_reads_task(request)
    _check_declaration(request)
    key = session.get_one(models.EnrolmentKey, key_id)
    architecture = resolve_architecture(
        request.base_model, request.architecture, request.execution, settings.model_folders
    )
    _check_rank(request, architecture.hidden_size)
    client = models.Client(
        name=request.name,
        execution=request.execution,
        base_model=request.base_model.model_dump(mode="json"),
        architecture=architecture.model_dump(mode="json"),
        lora_rank=request.lora_rank,
        lora_alpha=request.lora_alpha or 2.0 * request.lora_rank,
        task=request.task,
        dataset=request.dataset.model_dump(mode="json") if request.dataset else None,
        modules=_modules(request),
        num_examples=request.num_examples,
        enrolment_key_id=key_id,
        is_pending=key.requires_approval,
    )
    with unique(
        session,
        f"There is a client {request.name!r} already. Choose another name, or rotate its "
        "credential if it is yours.",
        "client_name_taken",
    ):
        session.add(client)
    credential = issue_credential(session, client)
    session.flush()
    if key.federation_id is not None and not key.requires_approval:
        join(session, key.federation_id, client)
    session.refresh(client)
    principal = ClientPrincipal(client.id, client.name, key_id, address)
    record_audit(session, principal, "client.register", client.id, enrolment_key_id=str(key_id))
    if request.public_key is not None:
        add_key(session, principal, request.public_key)
    return ClientRegistered(client=Client.model_validate(client), credential=credential)


def _require_operator(session: Session, federation_id: UUID, actor: UserPrincipal) -> None:
    query = select(models.Federation.id).where(
        models.Federation.id == federation_id, federations_with(actor, Role.OPERATOR)
    )
    if session.scalar(query) is None:
        raise InvalidError(
            f"There is no federation {federation_id} of which you are an operator. Leave "
            "`federation_id` out, or ask one of its operators for the key.",
            code="unknown_federation",
            errors=[
                FieldError(
                    field="federation_id",
                    value=str(federation_id),
                    message="no federation of which you are an operator",
                )
            ],
        )


def _use_key(session: Session, secret: str) -> UUID:
    secret_hash = hash_secret(secret)
    key_id = repository.use_key(session, secret_hash)
    if key_id is not None:
        return key_id
    key = repository.find_key_by_hash(session, secret_hash)
    if key is None:
        raise ForbiddenError(
            "The enrolment key is not known here. Copy the whole key (`fbe_...`), or ask an "
            "operator for one.",
            code="enrolment_key_unknown",
        )
    if key.revoked_at is not None:
        raise ForbiddenError(
            f"The enrolment key {key.label!r} was revoked. Ask an operator for a new one.",
            code="enrolment_key_revoked",
        )
    if key.num_uses >= key.max_uses:
        raise ForbiddenError(
            f"The enrolment key {key.label!r} is used up ({key.num_uses} of {key.max_uses} uses). "
            "Ask an operator for a new one.",
            code="enrolment_key_used_up",
        )
    raise ForbiddenError(
        f"The enrolment key {key.label!r} expired at {key.expires_at:%Y-%m-%d %H:%M} UTC. Ask an "
        "operator for a new one.",
        code="enrolment_key_expired",
    )


def _check_dataset(request: ClientRegister) -> None:
    if request.dataset is None:
        return
    kind = BUILTIN_TASK_KINDS[request.dataset.task]
    if kind is not request.task:
        raise _refused(
            "dataset.task",
            request.dataset.task,
            f"Data set {request.dataset.task.value!r} is for task {kind.value!r}, but `task` is "
            f"{request.task.value!r}. Make them agree.",
        )


def _check_model_reads_task(request: ClientRegister) -> None:
    """Of built-in models it is known what they read; of others the training says it."""
    if request.base_model.source != "builtin":
        return
    reads_images = request.base_model.id in IMAGE_MODELS
    if reads_images != (request.task is TaskKind.IMAGE_CLASSIFICATION):
        reads = "pictures" if reads_images else "text"
        raise _refused(
            "base_model.id",
            request.base_model.id,
            f"Base model {request.base_model.id!r} reads {reads}, but `task` is "
            f"{request.task.value!r}. Choose a model for that task, or another task.",
        )


def _check_declaration(request: ClientRegister) -> None:
    """A remote client says what the platform cannot see; of a managed one it sees everything."""
    declared = {"modules": request.modules, "num_examples": request.num_examples}
    if request.execution is Execution.MANAGED and request.public_key is not None:
        raise _refused(
            "public_key",
            request.public_key,
            "`public_key` is for remote clients: the platform trains for a managed one, which has "
            "nothing to sign. Leave it out.",
        )
    if request.execution is Execution.MANAGED:
        for field, value in declared.items():
            if value is not None:
                raise _refused(
                    field,
                    value if field == "num_examples" else None,
                    f"`{field}` is for remote clients: the platform reads it itself from the base "
                    "model or the data set of a managed one. Leave it out.",
                )
        return
    if request.dataset is not None:
        raise _refused(
            "dataset",
            request.dataset.task,
            "A remote client's data stay on its own machine. Leave `dataset` out, declare "
            "`num_examples`, and name the data when you start the agent.",
        )
    for field, value in declared.items():
        if value is None:
            raise _refused(
                field,
                None,
                f"`{field}` is missing: the platform cannot see a remote client's base model and "
                "data. Register with `python -m worker.agent register`, which declares both.",
            )


def _modules(request: ClientRegister) -> dict[str, object] | None:
    if request.modules is None:
        return None
    return {role: shape.model_dump() for role, shape in request.modules.items()}


def _check_rank(request: ClientRegister, hidden_size: int) -> None:
    if request.lora_rank > hidden_size:
        raise _refused(
            "lora_rank",
            request.lora_rank,
            f"LoRA rank {request.lora_rank} is above the width {hidden_size} of base model "
            f"{request.base_model.id!r}: more gains nothing. Choose {hidden_size} or less.",
        )


def _refused(field: str, value: object, message: str) -> InvalidError:
    return InvalidError(message, errors=[FieldError(field=field, value=value, message=message)])
