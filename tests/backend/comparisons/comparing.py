"""Comparisons for tests: made through the API, moved on straight in the database."""

from typing import Any
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.orm import Session

from backend.contracts.enums import RunStatus
from backend.contracts.metrics import MetricName
from backend.db.models import Run
from backend.journal import record_metrics
from backend.lifecycle import change_run
from tests.factories import Caller

ARMS = [
    {"strategy": {"name": "local_only"}},
    {"strategy": {"name": "h2tune"}},
    {"strategy": {"name": "h2tune", "control": "permuted"}, "label": "permuted"},
]


def make_comparison(operator: Caller, federation: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """A created comparison of three arms and two seeds."""
    body = {"name": "Does it pay?", "arms": ARMS, "seeds": [0, 1], "num_rounds": 1, **changes}
    response = operator.post(f"/federations/{federation['id']}/comparisons", body)
    assert response.status_code == 201, response.text
    return dict(response.json())


def runs_of(session: Session, comparison: dict[str, Any]) -> dict[tuple[str, int], Run]:
    """The runs by arm and seed, read anew."""
    rows = session.scalars(
        select(Run)
        .where(Run.comparison_id == UUID(comparison["id"]))
        .execution_options(populate_existing=True)
    )
    found = {(str(run.arm), run.seed): run for run in rows}
    session.rollback()
    return found


def admitted(session: Session, comparison: dict[str, Any]) -> set[tuple[str, int]]:
    """Runs that were given their turn, whatever became of them."""
    runs = runs_of(session, comparison)
    return {place for place, run in runs.items() if run.enqueued_at is not None}


def complete(
    session: Session, run: Run, accuracies: dict[UUID, tuple[float, float, float]], **costs: float
) -> None:
    """A run that went through: (untrained, after training, delivered) by client, and its costs.

    Args:
        costs: bytes_up, bytes_down and seconds_train of each client in each of two rounds.
    """
    change_run(session, run.id, RunStatus.QUEUED)
    change_run(session, run.id, RunStatus.RUNNING)
    for client_id, (untrained, trained, delivered) in accuracies.items():
        per_round = {MetricName(name): value for name, value in costs.items()}
        before = MetricName.ACCURACY_BEFORE_TRAINING
        after = MetricName.ACCURACY_AFTER_TRAINING
        record_metrics(session, run.id, client_id, 1, {before: untrained, after: 0.01, **per_round})
        record_metrics(session, run.id, client_id, 2, {before: 0.99, after: trained, **per_round})
        record_metrics(session, run.id, client_id, 3, {MetricName.ACCURACY_DELIVERED: delivered})
        record_metrics(session, run.id, client_id, 2, {after: 0.77}, step=5)
    change_run(session, run.id, RunStatus.COMPLETED)
    session.commit()


def fail(session: Session, run: Run, reason: str) -> None:
    """A run that failed."""
    change_run(session, run.id, RunStatus.QUEUED)
    change_run(session, run.id, RunStatus.FAILED, error=reason)
    session.commit()
