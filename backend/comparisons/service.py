"""Comparisons: preparing, starting and cancelling them."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from functools import cache, partial
from uuid import UUID

from sqlalchemy.orm import Session

from backend.audit import record_audit
from backend.auth.principals import UserPrincipal
from backend.comparisons import repository
from backend.contracts.clients import Client
from backend.contracts.codes import codes_refusal
from backend.contracts.common import FieldError, Page
from backend.contracts.comparisons import Arm, ArmCreate, Comparison, ComparisonCreate
from backend.contracts.compatibility import participant_of, refusals
from backend.contracts.enums import EventKind, RunStatus
from backend.contracts.robustness import robustness_refusals
from backend.contracts.round_policy import EVERYBODY
from backend.contracts.runs import Event, Run
from backend.contracts.secure_rules import protection_refusals
from backend.contracts.training import TrainingConfig
from backend.db import models
from backend.errors import ConflictError, InvalidError, NotFoundError
from backend.federations import service as federations
from backend.jobs import commit_and_enqueue
from backend.journal import record_event
from backend.lifecycle import cancel_run, change_run
from backend.probe_sets.service import count_texts
from backend.runs.description import RunDescriber
from backend.runs.service import require_datasets
from backend.signatures.service import require_keys
from backend.storage import BlobStore
from backend.turns import lock_comparison, take_turns
from backend.web.paging import fetch_page

MAX_REASONS = 10  # in the one text of an answer; its list has them all


def create_comparison(
    session: Session,
    store: BlobStore,
    federation_id: UUID,
    request: ComparisonCreate,
    actor: UserPrincipal,
) -> Comparison:
    """A new comparison with all its runs, which wait to be started.

    Raises:
        NotFoundError: no such federation.
        InvalidError: an arm's strategy cannot serve a member together with the others, does not
            offer the arm's protection or robust rule, or has too few probe texts.
    """
    federation = federations.get_row(session, federation_id)
    arms = request.all_arms()
    _require_compatible(request, arms, federation.clients)
    _require_protectable(arms, federation.clients)
    _require_robust(arms, len(federation.clients))
    _require_codes(store, request.arms, federation)  # controls need the same
    comparison = models.Comparison(
        federation_id=federation.id,
        name=request.name,
        arms=[_arm(arm).model_dump(mode="json") for arm in arms],
        seeds=request.seeds,
        training=request.training.model_dump(mode="json"),
        num_rounds=request.num_rounds,
        created_by=actor.id,
    )
    session.add(comparison)
    session.flush()
    runs = [
        models.Run(
            federation_id=federation.id,
            comparison_id=comparison.id,
            arm=arm.name,
            strategy=arm.strategy.model_dump(mode="json"),
            privacy=arm.privacy.model_dump(mode="json"),
            robustness=arm.robustness.model_dump(mode="json"),
            training=arm.training.applied_to(request.training).model_dump(mode="json"),
            num_rounds=request.num_rounds,
            seed=seed,
            probe_set_sha256=federation.probe_set_sha256,
            created_by=actor.id,
        )
        for seed in request.seeds
        for arm in arms
    ]
    session.add_all(runs)
    session.flush()
    for run in runs:
        record_event(
            session,
            run.id,
            EventKind.RUN_CREATED,
            f"Created by {actor.name} for the comparison {request.name!r}: arm {run.arm}, "
            f"{request.num_rounds} rounds, seed {run.seed}.",
        )
    record_audit(
        session,
        actor,
        "comparison.create",
        comparison.id,
        federation_id=str(federation_id),
        num_runs=len(runs),
    )
    return get_comparison(session, comparison.id)


def start_comparison(
    session: Session, comparison_id: UUID, actor: UserPrincipal, at_once: int
) -> Comparison:
    """Queues all runs and lets the first ones begin; commits, and then their jobs leave.

    Args:
        session: the transaction.
        comparison_id: which comparison.
        actor: who starts it.
        at_once: how many of its runs may go on together.

    Raises:
        NotFoundError: no such comparison.
        ConflictError: it was started before, or a member has no data set.
    """
    comparison = require_comparison(session, comparison_id)
    lock_comparison(session, comparison_id)
    federation = federations.get_row(session, comparison.federation_id)
    require_datasets(federation.clients)
    require_keys(session, federation)
    queued = [
        run
        for run in repository.find_runs(session, [comparison_id])
        if change_run(session, run.id, RunStatus.QUEUED, enqueued_at=None)
    ]
    if not queued:
        raise ConflictError(
            f"Comparison {comparison.name!r} was started before. Create a new one to compare "
            "again.",
            code="comparison_not_startable",
        )
    for run in queued:
        record_event(
            session,
            run.id,
            EventKind.RUN_QUEUED,
            f"Started by {actor.name}; it waits for its turn in the comparison.",
        )
    record_audit(session, actor, "comparison.start", comparison_id)
    commit_and_enqueue(session, *take_turns(session, comparison_id, at_once))
    return get_comparison(session, comparison_id)


def cancel_comparison(session: Session, comparison_id: UUID, actor: UserPrincipal) -> Comparison:
    """Ends all runs that have not ended; results of the others stay.

    Raises:
        NotFoundError: no such comparison.
        ConflictError: all its runs have ended.
    """
    comparison = require_comparison(session, comparison_id)
    lock_comparison(session, comparison_id)
    runs = repository.find_runs(session, [comparison_id])
    ended = [cancel_run(session, run.id, actor.name) for run in runs]
    if not any(ended):
        raise ConflictError(
            f"Comparison {comparison.name!r} has ended already.", code="comparison_ended"
        )
    record_audit(session, actor, "comparison.cancel", comparison_id)
    session.flush()
    return get_comparison(session, comparison_id)


def get_comparison(session: Session, comparison_id: UUID) -> Comparison:
    """One comparison with its state.

    Raises:
        NotFoundError: no such comparison.
    """
    comparison = require_comparison(session, comparison_id)
    return describe(comparison, repository.find_runs(session, [comparison_id]))


def list_comparisons(
    session: Session, federation_id: UUID, cursor: UUID | None, limit: int
) -> Page[Comparison]:
    """A federation's comparisons, newest first.

    Raises:
        NotFoundError: no such federation.
    """
    federations.get_row(session, federation_id)
    query = repository.of_federation_query(federation_id)
    rows = fetch_page(session, query, models.Comparison.id, cursor, limit, lambda row: row)
    runs: dict[UUID | None, list[models.Run]] = defaultdict(list)
    for run in repository.find_runs(session, [row.id for row in rows.items]):
        runs[run.comparison_id].append(run)
    return Page(
        items=[describe(row, runs[row.id]) for row in rows.items], next_cursor=rows.next_cursor
    )


def list_runs(session: Session, comparison_id: UUID, cursor: UUID | None, limit: int) -> Page[Run]:
    """A comparison's runs, newest first.

    Raises:
        NotFoundError: no such comparison.
    """
    require_comparison(session, comparison_id)
    query = repository.runs_query(comparison_id)
    describe_run = RunDescriber(session).describe
    return fetch_page(session, query, models.Run.id, cursor, limit, describe_run)


def list_events(
    session: Session, comparison_id: UUID, cursor: int | None, limit: int
) -> Page[Event]:
    """The events of a comparison's runs, newest first.

    Raises:
        NotFoundError: no such comparison.
    """
    require_comparison(session, comparison_id)
    query = repository.events_query(comparison_id)
    return fetch_page(session, query, models.Event.id, cursor, limit, Event.model_validate)


def require_comparison(session: Session, comparison_id: UUID) -> models.Comparison:
    """One comparison as a row.

    Raises:
        NotFoundError: no such comparison.
    """
    comparison = repository.find(session, comparison_id)
    if comparison is None:
        raise NotFoundError(f"There is no comparison {comparison_id}.")
    return comparison


def describe(comparison: models.Comparison, runs: Sequence[models.Run]) -> Comparison:
    """A comparison with the state that follows from its runs."""
    counts = Counter(run.status for run in runs)
    status = _status(counts)
    return Comparison(
        id=comparison.id,
        federation_id=comparison.federation_id,
        name=comparison.name,
        arms=[Arm.model_validate(arm) for arm in comparison.arms],
        seeds=comparison.seeds,
        num_rounds=comparison.num_rounds,
        training=TrainingConfig.model_validate(comparison.training),
        status=status,
        num_runs=dict(counts),
        created_at=comparison.created_at,
        started_at=min((run.started_at for run in runs if run.started_at), default=None),
        ended_at=(
            max((run.ended_at for run in runs if run.ended_at), default=None)
            if status.is_terminal
            else None
        ),
    )


def _status(counts: Counter[RunStatus]) -> RunStatus:
    states = set(counts)
    if all(state.is_terminal for state in states):
        order = (RunStatus.CANCELLED, RunStatus.COMPLETED, RunStatus.FAILED)
        return next(status for status in order if status in states)
    for status in (RunStatus.CREATED, RunStatus.QUEUED):
        states.discard(status)
        if states <= {RunStatus.CANCELLED}:
            return status
    return RunStatus.RUNNING


def _arm(arm: ArmCreate) -> Arm:
    return Arm(
        name=arm.name,
        strategy=arm.strategy,
        privacy=arm.privacy,
        robustness=arm.robustness,
        training=arm.training,
    )


def _require_compatible(
    request: ComparisonCreate, arms: Sequence[ArmCreate], clients: Sequence[models.Client]
) -> None:
    members = [participant_of(Client.model_validate(client)) for client in clients]
    errors = [
        FieldError(
            field=f"arms.{place}.strategy" if place < len(request.arms) else "controls",
            value=arm.name,
            message=f"Arm {arm.name}: {refusal.reason}",
        )
        for place, arm in enumerate(arms)
        for refusal in refusals(arm.strategy, members)
    ]
    _refuse(errors, "strategy_cannot_serve")


def _require_protectable(arms: Sequence[ArmCreate], clients: Sequence[models.Client]) -> None:
    members = [Client.model_validate(client) for client in clients]
    errors = [
        FieldError(
            field=f"arms.{place}.{field}",
            value=arm.name,
            message=f"Arm {arm.name}: {reason}",
        )
        for place, arm in enumerate(arms)
        for field, reasons in protection_refusals(
            arm.strategy, arm.privacy, EVERYBODY, members
        ).items()
        for reason in reasons
    ]
    _refuse(errors, "protection_not_offered")


def _require_robust(arms: Sequence[ArmCreate], num_members: int) -> None:
    errors = [
        FieldError(
            field=f"arms.{place}.robustness.{field}",
            value=arm.name,
            message=f"Arm {arm.name}: {reason}",
        )
        for place, arm in enumerate(arms)
        for field, reason in robustness_refusals(
            arm.strategy, arm.robustness, num_members, arm.privacy
        ).items()
    ]
    _refuse(errors, "robustness_not_offered")


def _require_codes(
    store: BlobStore, arms: Sequence[ArmCreate], federation: models.Federation
) -> None:
    tasks = [client.task for client in federation.clients]
    count = cache(partial(count_texts, store, federation))
    reasons = [codes_refusal(arm.strategy, tasks, federation.global_rank, count) for arm in arms]
    errors = [
        FieldError(
            field=f"arms.{place}.strategy.gauge",
            value=arm.name,
            message=f"Arm {arm.name}: {reason}",
        )
        for place, (arm, reason) in enumerate(zip(arms, reasons, strict=True))
        if reason is not None
    ]
    _refuse(errors, "codes_too_few")


def _refuse(errors: list[FieldError], code: str) -> None:
    if errors:
        text = " ".join(error.message for error in errors[:MAX_REASONS])
        raise InvalidError(text, code=code, errors=errors)
