"""What runs delivered in the end; asked for once per tab, since ended runs change no more."""

from uuid import UUID

import streamlit as st

from backend.api_client.client import ApiClient
from backend.contracts.enums import RunStatus
from backend.contracts.metrics import MetricName
from backend.contracts.runs import Run
from backend.contracts.strategies import StrategyName
from dashboard.components.live_history import newest, per_round

KEPT = "delivered"


def delivered_accuracy(api: ApiClient, run_id: UUID) -> dict[UUID, float]:
    """Test accuracy of each client's delivered adapter, in [0, 1], of a completed run."""
    kept: dict[UUID, dict[UUID, float]] = st.session_state.setdefault(KEPT, {})
    if run_id not in kept:
        points = list(api.runs.metrics(run_id))
        kept[run_id] = newest(per_round(points, MetricName.ACCURACY_DELIVERED))
    return kept[run_id]


def find_baseline(run: Run, others: list[Run]) -> Run | None:
    """The newest completed local-only run that differs from `run` in its strategy alone."""
    if run.strategy.name is StrategyName.LOCAL_ONLY:
        return None
    return next(
        (
            other
            for other in sorted(others, key=lambda item: item.created_at, reverse=True)
            if other.status is RunStatus.COMPLETED
            and other.strategy.name is StrategyName.LOCAL_ONLY
            and (other.seed, other.num_rounds, other.training)
            == (run.seed, run.num_rounds, run.training)
        ),
        None,
    )
