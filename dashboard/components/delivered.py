"""What completed runs reached; asked for once per tab, since ended runs change no more."""

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from uuid import UUID

import streamlit as st

from backend.api_client.client import ApiClient
from backend.contracts.enums import RunStatus, StrategyName
from backend.contracts.metrics import MetricName
from backend.contracts.params.lora import LocalOnlyParams
from backend.contracts.runs import Run
from dashboard.components.live_history import ByRound, LiveHistory, newest, per_round

KEPT = "delivered"
FOUND = "delivered.baselines"
LISTED_EVERY_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Reached:
    """Test accuracies in [0, 1] by client: of the delivered adapters, and after each round."""

    delivered: Mapping[UUID, float]
    after_training: Mapping[UUID, ByRound]


@dataclass(frozen=True, slots=True)
class Pair:
    """One client's accuracy in this run and, at the same point, in the local-only run."""

    own: float
    local: float

    @property
    def gain(self) -> float:
        """What working together was worth, as a share."""
        return self.own - self.local


def reached(api: ApiClient, run_id: UUID) -> Reached:
    """What a completed run reached."""
    kept: dict[UUID, Reached] = st.session_state.setdefault(KEPT, {})
    if run_id not in kept:
        points = list(api.runs.metrics(run_id))
        kept[run_id] = Reached(
            newest(per_round(points, MetricName.ACCURACY_DELIVERED)),
            per_round(points, MetricName.ACCURACY_AFTER_TRAINING),
        )
    return kept[run_id]


def pairs(history: LiveHistory, baseline: Reached | None) -> dict[UUID, Pair]:
    """Compare like with like: delivered with delivered, else the newest round both have."""
    if baseline is None:
        return {}
    own_delivered = newest(history.per_round(MetricName.ACCURACY_DELIVERED))
    found = {}
    for client, rounds in history.per_round(MetricName.ACCURACY_AFTER_TRAINING).items():
        local_rounds = baseline.after_training.get(client, {})
        common = rounds.keys() & local_rounds.keys()
        if common:
            number = max(common)
            found[client] = Pair(rounds[number], local_rounds[number])
    for client in own_delivered.keys() & baseline.delivered.keys():
        found[client] = Pair(own_delivered[client], baseline.delivered[client])
    return found


def baseline_of(api: ApiClient, run: Run) -> Run | None:
    """The run to compare with, as `find_baseline` finds it, for a page that refreshes often.

    A federation's runs are many and seldom change: they are listed now and then, and in between
    only a baseline that goes on is asked for.
    """
    if run.strategy.name is StrategyName.LOCAL_ONLY:
        return None
    found: dict[UUID, tuple[float, Run | None]] = st.session_state.setdefault(FOUND, {})
    listed_at, known = found.get(run.id, (-math.inf, None))
    if known is not None and known.status is RunStatus.COMPLETED:
        return known
    if time.monotonic() - listed_at >= LISTED_EVERY_SECONDS:
        listed_at = time.monotonic()
        known = find_baseline(run, list(api.federations.runs(run.federation_id)))
    elif known is not None:
        known = api.runs.get(known.id)
    found[run.id] = (listed_at, known)
    return known


def find_baseline(run: Run, others: list[Run]) -> Run | None:
    """The plain local-only run that differs from `run` in its strategy alone.

    The newest completed one; else the newest that is on its way.
    """
    if run.strategy.name is StrategyName.LOCAL_ONLY:
        return None
    alike = [
        other
        for other in sorted(others, key=lambda item: item.created_at, reverse=True)
        if other.strategy == LocalOnlyParams()
        and (other.seed, other.num_rounds, other.training)
        == (run.seed, run.num_rounds, run.training)
    ]
    completed = (other for other in alike if other.status is RunStatus.COMPLETED)
    coming = (other for other in alike if other.status in {RunStatus.QUEUED, RunStatus.RUNNING})
    return next(completed, None) or next(coming, None)
