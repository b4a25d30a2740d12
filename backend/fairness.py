"""Whose turn it is: training jobs of federations are done in turn, and so are the runs of each.

A job in the queue means that one more update waits; which one a worker then does is decided here,
from the database. The federation comes first for which the fewest workers train now, among equals
the one that was served longest ago; within it the run by the same rule. So a federation with many
clients, or many runs, holds up its own runs and nobody else's.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import zip_longest
from uuid import UUID

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from backend.contracts.enums import Execution, RunStatus, UpdateStatus
from backend.db.models import Client, ClientUpdate, Round, Run

_NEVER = datetime.min.replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class RunLoad:
    """What workers of the platform do for a running run."""

    run_id: UUID
    federation_id: UUID
    num_waiting: int  # updates of managed clients
    num_training: int
    served_at: datetime | None  # when the newest attempt began


def turn_order(loads: Sequence[RunLoad]) -> list[UUID]:
    """Runs with waiting updates, the one whose turn it is first.

    Args:
        loads: of all running runs; those that wait for nothing count for their federation.
    """
    federations: dict[UUID, list[RunLoad]] = defaultdict(list)
    for load in loads:
        federations[load.federation_id].append(load)
    in_turn = sorted(federations.values(), key=_rank)
    waiting = [
        sorted((load for load in of_one if load.num_waiting), key=lambda load: _rank([load]))
        for of_one in in_turn
    ]
    return [load.run_id for turn in zip_longest(*waiting) for load in turn if load is not None]


def run_loads(session: Session) -> list[RunLoad]:
    """What workers do for each running run."""
    rows = session.execute(
        select(
            Run.id,
            Run.federation_id,
            func.count().filter(ClientUpdate.status == UpdateStatus.PENDING),
            func.count().filter(ClientUpdate.status == UpdateStatus.TRAINING),
            func.max(ClientUpdate.started_at),
        )
        .join(Round, Round.run_id == Run.id)
        .join(ClientUpdate, ClientUpdate.round_id == Round.id)
        .join(Client, ClientUpdate.client_id == Client.id)
        .where(Run.status == RunStatus.RUNNING, Client.execution == Execution.MANAGED)
        .group_by(Run.id)
    ).all()
    return [RunLoad(*row) for row in rows]


def fair_update(session: Session, asked: UUID) -> UUID:
    """The update that a worker does now, locked until the transaction ends.

    Args:
        session: the transaction in which it is then claimed.
        asked: the update of the job; done itself where its run has the turn, and given back where
            nothing waits.
    """
    for run_id in turn_order(run_loads(session)):
        waiting = (
            select(ClientUpdate.id)
            .join(Round, ClientUpdate.round_id == Round.id)
            .join(Client, ClientUpdate.client_id == Client.id)
            .where(
                Round.run_id == run_id,
                ClientUpdate.status == UpdateStatus.PENDING,
                Client.execution == Execution.MANAGED,
            )
            .order_by((ClientUpdate.id == asked).desc(), ClientUpdate.enqueued_at, ClientUpdate.id)
            .limit(1)
            .with_for_update(of=ClientUpdate, skip_locked=True, key_share=True)
        )
        chosen = session.scalar(waiting)
        if chosen is not None:
            return chosen
    return asked


def queue_positions(session: Session) -> dict[UUID, int]:
    """The place, from 1, of running runs for which no worker trains although updates wait."""
    loads = run_loads(session)
    busy = {load.run_id for load in loads if load.num_training}
    order = turn_order(loads)
    return {run_id: place for place, run_id in enumerate(order, start=1) if run_id not in busy}


def _rank(loads: Sequence[RunLoad]) -> tuple[int, datetime, UUID]:
    """Whoever has the smallest comes first."""
    training = sum(load.num_training for load in loads)
    served = max(load.served_at or _NEVER for load in loads)
    return training, served, min(load.run_id for load in loads)
