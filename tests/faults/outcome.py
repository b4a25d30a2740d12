"""What became of a run, and what is wrong with that."""

import hashlib
from collections import Counter
from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from backend.contracts.enums import (
    AttemptOutcome,
    EventKind,
    RoundKind,
    RoundStatus,
    RunStatus,
    UpdateStatus,
)
from backend.db.models import Attempt, Client, ClientUpdate, Event, Metric, Round, Run
from backend.storage.blobs import BlobCorruptedError, BlobStore
from worker.federated.wire import decode_update

Part = tuple[int, str]
"""Number of a round and name of a client."""
ONCE = (
    EventKind.RUN_STARTED,
    EventKind.RUN_COMPLETED,
    EventKind.ROUND_OPENED,
    EventKind.ROUND_AGGREGATED,
    EventKind.UPDATE_ACCEPTED,
    EventKind.ADAPTER_READY,
)
"""What may happen once only: to a run, to a round, or to a client in a round."""


@dataclass(frozen=True)
class Update:
    """One client's part of one round as the database has it."""

    status: UpdateStatus
    shared: str | None  # hash of the tensors; beside them lie seconds, which no two attempts share
    adapter_sha256: str | None
    aggregated_in: int | None
    kind: RoundKind
    fence: int
    accepted_attempts: tuple[int, ...]


@dataclass(frozen=True)
class Outcome:
    """Everything about a run that ended that must not depend on faults, and its attempts."""

    status: RunStatus
    error: str | None
    state_sha256: str | None
    rounds: dict[int, RoundStatus]
    updates: dict[Part, Update]
    events: Counter[tuple[EventKind, int | None, str | None]]
    repeated_metrics: list[str]


def read_outcome(session: Session, store: BlobStore, run_id: UUID) -> Outcome:
    run = session.get_one(Run, run_id)
    rounds = session.scalars(select(Round).where(Round.run_id == run_id)).all()
    events = session.execute(
        select(Event.kind, Event.round_number, Client.name)
        .outerjoin(Client, Event.client_id == Client.id)
        .where(Event.run_id == run_id)
    ).all()
    repeated = session.execute(
        select(Metric.name, Metric.round_number, Metric.client_id)
        .where(Metric.run_id == run_id, Metric.step.is_(None))
        .group_by(Metric.name, Metric.round_number, Metric.client_id)
        .having(func.count() > 1)
    ).all()
    return Outcome(
        status=run.status,
        error=run.error,
        state_sha256=run.state_sha256,
        rounds={round_.round_number: round_.status for round_ in rounds},
        updates=_read_updates(session, store, run_id),
        events=Counter((kind, number, name) for kind, number, name in events),
        repeated_metrics=[f"{name} of round {number}" for name, number, _ in repeated],
    )


def _read_updates(session: Session, store: BlobStore, run_id: UUID) -> dict[Part, Update]:
    rows = session.execute(
        select(ClientUpdate, Round, Client.name)
        .join(Round, ClientUpdate.round_id == Round.id)
        .join(Client, ClientUpdate.client_id == Client.id)
        .where(Round.run_id == run_id)
    ).all()
    accepted = session.execute(
        select(Attempt.client_update_id, Attempt.number).where(
            Attempt.client_update_id.in_([update.id for update, _, _ in rows]),
            Attempt.outcome == AttemptOutcome.ACCEPTED,
        )
    ).all()
    return {
        (round_.round_number, name): Update(
            status=update.status,
            shared=_hash_of_shared(store, update.shared_sha256),
            adapter_sha256=update.adapter_sha256,
            aggregated_in=update.aggregated_in,
            kind=round_.kind,
            fence=update.fence,
            accepted_attempts=tuple(number for of, number in accepted if of == update.id),
        )
        for update, round_, name in rows
    }


def _hash_of_shared(store: BlobStore, sha256: str | None) -> str | None:
    if sha256 is None:
        return None
    try:
        shared = decode_update(store.read(sha256)).shared
    except BlobCorruptedError:
        return "corrupted"
    digest = hashlib.sha256()
    for name, tensor in sorted(shared.items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def problems_of(outcome: Outcome, reference: Outcome) -> list[str]:
    """Every way in which a run that met faults differs from one that met none; empty: survived."""
    found = list(damage_of(outcome))
    if outcome.status is not reference.status:
        found.append(f"the run is {outcome.status}, not {reference.status}: {outcome.error}")
    if outcome.state_sha256 != reference.state_sha256:
        found.append(f"final state {outcome.state_sha256}, not {reference.state_sha256}")
    if outcome.rounds != reference.rounds:
        found.append(f"rounds {outcome.rounds}, not {reference.rounds}")
    for part in sorted(reference.updates.keys() | outcome.updates.keys()):
        mine, theirs = outcome.updates.get(part), reference.updates.get(part)
        if mine is None or theirs is None or _result(mine) != _result(theirs):
            found.append(f"update {part}: {mine}, not {theirs}")
    return found


def problems_of_corrupted(outcome: Outcome, damaged: Part, min_clients: int | None) -> list[str]:
    """What is wrong with a run of which an accepted update was damaged on disk."""
    found = list(damage_of(outcome))
    round_number, name = damaged
    if not outcome.events[EventKind.UPDATE_REFUSED, round_number, name]:
        found.append(f"nobody noticed the damage of {damaged}")
    if min_clients is None:
        if outcome.status is not RunStatus.FAILED or name not in (outcome.error or ""):
            found.append(f"every update is needed, but: {outcome.status}, {outcome.error}")
        return found
    if outcome.status is not RunStatus.COMPLETED:
        found.append(f"two updates are enough, but: {outcome.status}, {outcome.error}")
    if outcome.updates[damaged].status is not UpdateStatus.REFUSED:
        found.append(f"the damaged update is {outcome.updates[damaged].status}")
    used = [
        part
        for part, update in outcome.updates.items()
        if update.kind is RoundKind.TRAIN and update.aggregated_in is None
    ]
    if used != [damaged]:
        found.append(f"not aggregated: {used}, expected only {damaged}")
    return found


def damage_of(outcome: Outcome) -> list[str]:
    """What no run may show, however it ended."""
    found = [
        f"{count} times {kind} (round {number}, {name})"
        for (kind, number, name), count in outcome.events.items()
        if kind in ONCE and count != 1
    ]
    found += [f"recorded twice: {metric}" for metric in outcome.repeated_metrics]
    for part, update in outcome.updates.items():
        taken = update.status in {UpdateStatus.ACCEPTED, UpdateStatus.REFUSED}
        if update.accepted_attempts != ((update.fence,) if taken else ()):
            found.append(f"attempts of {part} that were accepted: {update.accepted_attempts}")
        if update.aggregated_in not in {None, part[0]}:
            found.append(f"{part} was aggregated in round {update.aggregated_in}")
    return found


def _result(update: Update) -> tuple[object, ...]:
    return (update.status, update.shared, update.adapter_sha256, update.aggregated_in)
