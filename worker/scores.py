"""What a round's aggregation says of single clients, on its way from the core to the run page."""

from collections.abc import Iterable, Mapping
from uuid import UUID

from sqlalchemy.orm import Session

from backend.contracts.privacy import PrivacySettings
from backend.contracts.strategies import PARAMS
from backend.db.models import Run
from backend.journal import record_metrics
from worker.federated.robustness.scores import score_clients
from worker.federated.types import (
    AggregationReport,
    ClientUpdate,
    FederationSpec,
    Metrics,
    ServerState,
)


def round_scores(
    run: Run,
    state: ServerState,
    federation: FederationSpec,
    updates: Iterable[ClientUpdate],
    report: AggregationReport,
) -> dict[str, Metrics]:
    """Scores by client id, and what the strategy itself found out about clients.

    Args:
        run: with its strategy and privacy.
        state: before the aggregation.
        federation: of the run.
        updates: that the aggregation used; they are read from the store twice more.
        report: of the aggregation.
    """
    params = PARAMS.validate_python(run.strategy)
    privacy = PrivacySettings.model_validate(run.privacy)
    scores = score_clients(params, privacy, state, federation, updates)
    return {
        client_id: {**scores.get(client_id, {}), **report.clients.get(client_id, {})}
        for client_id in sorted(scores.keys() | report.clients.keys())
    }


def record_scores(
    session: Session, run_id: UUID, round_number: int, scores: Mapping[str, Metrics]
) -> None:
    """Adds them to the metrics of the round; they leave with the commit."""
    for client_id, values in scores.items():
        record_metrics(session, run_id, UUID(client_id), round_number, values)
