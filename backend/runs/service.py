"""Runs: preparing, starting and cancelling them, and what they left."""

from collections.abc import Sequence
from functools import partial
from uuid import UUID

from sqlalchemy.orm import Session

from backend.audit import record_audit
from backend.auth.principals import UserPrincipal
from backend.contracts.clients import Client
from backend.contracts.codes import codes_refusal
from backend.contracts.common import FieldError, Page
from backend.contracts.compatibility import cautions, participant_of, refusals
from backend.contracts.enums import EventKind, Execution, RunStatus
from backend.contracts.jobs import OpenRound
from backend.contracts.robustness import robustness_refusals
from backend.contracts.round_policy import policy_refusals
from backend.contracts.runs import Adapter, Run, RunCreate
from backend.contracts.secure_rules import protection_refusals
from backend.contracts.stopping import stop_refusal
from backend.contracts.strategies import Params, title_of
from backend.db import models
from backend.errors import ConflictError, InvalidError, NotFoundError
from backend.federations import service as federations
from backend.jobs import commit_and_enqueue
from backend.journal import record_event
from backend.lifecycle import cancel_run as end_run
from backend.lifecycle import change_run, lock_run
from backend.probe_sets.service import count_texts
from backend.runs import repository
from backend.runs.description import RunDescriber, describe_run
from backend.signatures.service import require_keys
from backend.storage import BlobStore
from backend.web.downloads import Download
from backend.web.paging import fetch_page

MAX_REASONS = 10  # in the one text of an answer; its list has them all


def create_run(
    session: Session,
    store: BlobStore,
    federation_id: UUID,
    request: RunCreate,
    actor: UserPrincipal,
) -> Run:
    """A new run, which waits to be started.

    Raises:
        NotFoundError: no such federation.
        InvalidError: the strategy cannot serve a member together with the others, or cannot be
            protected as asked, its rounds could never close, no robust rule fits, or there are too
            few probe texts.
    """
    federation = federations.get_row(session, federation_id)
    require_compatible(request.strategy, federation.clients)
    require_protectable(request, federation.clients)
    require_possible(request, len(federation.clients))
    require_robust(request, len(federation.clients))
    require_codes(store, request.strategy, federation)
    run = models.Run(
        federation_id=federation.id,
        strategy=request.strategy.model_dump(mode="json"),
        training=request.training.model_dump(mode="json"),
        privacy=request.privacy.model_dump(mode="json"),
        robustness=request.robustness.model_dump(mode="json"),
        round_policy=request.round_policy.model_dump(mode="json"),
        stop_when=None if request.stop_when is None else request.stop_when.model_dump(mode="json"),
        num_rounds=request.num_rounds,
        seed=request.seed,
        probe_set_sha256=federation.probe_set_sha256,
        created_by=actor.id,
    )
    session.add(run)
    session.flush()
    session.refresh(run)
    record_event(
        session,
        run.id,
        EventKind.RUN_CREATED,
        f"Created by {actor.name}: {title_of(request.strategy)}, "
        f"{request.num_rounds} rounds, seed {request.seed}.",
        cautions=known_cautions(request.strategy, federation.clients),
    )
    record_audit(session, actor, "run.create", run.id, federation_id=str(federation_id))
    return Run.model_validate(run)


def require_compatible(strategy: Params, clients: Sequence[models.Client]) -> None:
    """Refuses, before anything is made, a strategy that cannot serve these clients together.

    Raises:
        InvalidError: one sentence a client that does not fit, each with the remedy.
    """
    members = [participant_of(Client.model_validate(client)) for client in clients]
    found = refusals(strategy, members)
    if not found:
        return
    raise InvalidError(
        " ".join(refusal.reason for refusal in found[:MAX_REASONS]),
        code="strategy_cannot_serve",
        errors=[
            FieldError(field="strategy", value=strategy.name.value, message=refusal.reason)
            for refusal in found
        ],
    )


def require_protectable(request: RunCreate, clients: Sequence[models.Client]) -> None:
    """Refuses a protection that strategy, members or rounds do not allow.

    Raises:
        InvalidError: one sentence a reason, each with the remedy.
    """
    members = [Client.model_validate(client) for client in clients]
    found = protection_refusals(request.strategy, request.privacy, request.round_policy, members)
    if not found:
        return
    raise InvalidError(
        " ".join(reason for reasons in found.values() for reason in reasons),
        code="protection_not_offered",
        errors=[
            FieldError(field=field, message=reason)
            for field, reasons in found.items()
            for reason in reasons
        ],
    )


def require_possible(request: RunCreate, num_members: int) -> None:
    """Refuses rounds that could never close, and a rule to stop that would know nothing.

    Raises:
        InvalidError: one sentence a field, each with the remedy.
    """
    policy = policy_refusals(request.strategy, request.round_policy, num_members)
    found = {f"round_policy.{field}": reason for field, reason in policy.items()}
    stop = stop_refusal(request.stop_when, request.privacy)
    if stop is not None:
        found["stop_when"] = stop
    if not found:
        return
    raise InvalidError(
        " ".join(found.values()),
        code="round_policy_impossible",
        errors=[FieldError(field=field, message=reason) for field, reason in found.items()],
    )


def require_robust(request: RunCreate, num_members: int) -> None:
    """Refuses a robust rule, or a bound of norms, that could not keep what it promises.

    Raises:
        InvalidError: one sentence a field, each with the remedy.
    """
    policy = request.round_policy
    smallest = policy.quorum(policy.num_participants(num_members))
    found = robustness_refusals(request.strategy, request.robustness, smallest, request.privacy)
    if not found:
        return
    raise InvalidError(
        " ".join(dict.fromkeys(found.values())),
        code="robustness_not_offered",
        errors=[
            FieldError(field=f"robustness.{field}", message=reason)
            for field, reason in found.items()
        ],
    )


def require_codes(store: BlobStore, strategy: Params, federation: models.Federation) -> None:
    """Refuses a strategy that needs more codes than the federation's probe texts can give.

    Raises:
        InvalidError: with both numbers and the remedy.
    """
    tasks = [client.task for client in federation.clients]
    count = partial(count_texts, store, federation)
    reason = codes_refusal(strategy, tasks, federation.global_rank, count)
    if reason is None:
        return
    raise InvalidError(
        reason,
        code="codes_too_few",
        errors=[FieldError(field="strategy.gauge", value=strategy.name.value, message=reason)],
    )


def known_cautions(strategy: Params, clients: Sequence[models.Client]) -> list[str]:
    """What is allowed but worth knowing, such as a client that is alone in its group."""
    return cautions(strategy, [participant_of(Client.model_validate(c)) for c in clients])


def start_run(session: Session, run_id: UUID, actor: UserPrincipal) -> Run:
    """Queues a run; commits, and then its first job leaves.

    Raises:
        NotFoundError: no such run.
        ConflictError: it was started before, a comparison owns it, a member has no data set, or
            none of the keys that its federation demands.
    """
    require_run(session, run_id)
    run = lock_run(session, run_id)
    if run.comparison_id is not None:
        raise ConflictError(
            f"Run {run_id} belongs to comparison {run.comparison_id}, which starts all its runs. "
            "Use POST /api/v1/comparisons/{id}/start.",
            code="run_of_comparison",
        )
    require_datasets(run.federation.clients)
    require_keys(session, run.federation)
    if not change_run(session, run_id, RunStatus.QUEUED):
        raise ConflictError(
            f"Run {run_id} is {run.status.value}; only a created run can be started. Create a new "
            "run to train again.",
            code="run_not_startable",
        )
    record_event(session, run_id, EventKind.RUN_QUEUED, f"Started by {actor.name}.")
    record_audit(session, actor, "run.start", run_id)
    commit_and_enqueue(session, OpenRound(run_id=run_id))
    return _fresh(session, run)


def require_datasets(clients: Sequence[models.Client]) -> None:
    """Refuses a start before every client that the platform trains for has rows.

    Raises:
        ConflictError: one or more have no data set.
    """
    missing = [
        client.name
        for client in clients
        if client.dataset is None and client.execution is Execution.MANAGED
    ]
    if missing:
        raise ConflictError(
            f"No data set yet: {', '.join(missing)}. Upload one for each with "
            "PUT /api/v1/clients/{id}/dataset, then start again.",
            code="dataset_missing",
        )


def cancel_run(session: Session, run_id: UUID, actor: UserPrincipal) -> Run:
    """Ends a run early; what clients already reached is kept.

    Raises:
        NotFoundError: no such run.
        ConflictError: it has ended.
    """
    run = require_run(session, run_id)
    if not end_run(session, run_id, actor.name):
        raise ConflictError(
            f"Run {run_id} has ended already: it is {run.status.value}.", code="run_ended"
        )
    record_audit(session, actor, "run.cancel", run_id)
    session.flush()
    return _fresh(session, run)


def get_run(session: Session, run_id: UUID) -> Run:
    """One run.

    Raises:
        NotFoundError: no such run.
    """
    return describe_run(session, require_run(session, run_id))


def list_runs(session: Session, federation_id: UUID, cursor: UUID | None, limit: int) -> Page[Run]:
    """A federation's runs, newest first.

    Raises:
        NotFoundError: no such federation.
    """
    federations.get_row(session, federation_id)
    query = repository.of_federation_query(federation_id)
    return fetch_page(session, query, models.Run.id, cursor, limit, RunDescriber(session).describe)


def list_adapters(session: Session, run_id: UUID, cursor: UUID | None, limit: int) -> Page[Adapter]:
    """The adapters that clients of a run can download.

    Raises:
        NotFoundError: no such run.
    """
    require_run(session, run_id)
    query = repository.adapters_query(run_id)
    return fetch_page(session, query, models.ClientUpdate.id, cursor, limit, _adapter)


def find_adapter(session: Session, run_id: UUID, client_id: UUID) -> Download:
    """A client's adapter, a zip.

    Raises:
        NotFoundError: no such run, or no adapter of this client yet.
    """
    require_run(session, run_id)
    query = repository.adapters_query(run_id).where(models.Client.id == client_id)
    row = session.execute(query.order_by(models.ClientUpdate.id.desc()).limit(1)).first()
    if row is None:
        raise NotFoundError(
            f"Client {client_id} has no adapter in run {run_id}. Adapters are exported after the "
            "last round; see GET /api/v1/runs/{id}/adapters."
        )
    _update, client, blob = row
    return Download(
        name=f"{client.name}-{run_id}.zip",
        size_bytes=blob.size_bytes,
        sha256=blob.sha256,
        media_type=blob.media_type,
    )


def require_run(session: Session, run_id: UUID) -> models.Run:
    """One run as a row for other features.

    Raises:
        NotFoundError: no such run.
    """
    run = repository.find_run(session, run_id)
    if run is None:
        raise NotFoundError(f"There is no run {run_id}.")
    return run


def _fresh(session: Session, run: models.Run) -> Run:
    session.refresh(run)
    return Run.model_validate(run)


def _adapter(update: models.ClientUpdate, client: models.Client, blob: models.Blob) -> Adapter:
    run_id = update.round.run_id
    return Adapter(
        run_id=run_id,
        client_id=client.id,
        client_name=client.name,
        size_bytes=blob.size_bytes,
        sha256=blob.sha256,
        created_at=update.ended_at or blob.created_at,
    )
