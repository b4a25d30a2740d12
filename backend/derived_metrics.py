"""Values of a client's round that follow from the database, for every strategy alike."""

from collections.abc import Mapping
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.orm import Session

from backend.contracts.metrics import MetricName
from backend.db.models import ClientUpdate, Metric, Round

_START = (MetricName.ACCURACY_DELIVERED, MetricName.ACCURACY_BEFORE_TRAINING)


def derived_metrics(
    session: Session, client_update_id: UUID, measured: Mapping[MetricName, float]
) -> dict[MetricName, float]:
    """How long the client waited, and what the last aggregation did to it.

    Args:
        session: the update's attempt has begun in it or before.
        client_update_id: of which update.
        measured: what the client measured in this round.

    Returns:
        `seconds_wait` always, `aggregation_gap` where accuracy was measured on both sides of it.
    """
    row = session.execute(
        select(
            ClientUpdate.client_id,
            ClientUpdate.started_at,
            Round.run_id,
            Round.round_number,
            Round.opened_at,
        )
        .join(Round, ClientUpdate.round_id == Round.id)
        .where(ClientUpdate.id == client_update_id)
    ).one()
    derived: dict[MetricName, float] = {}
    if row.started_at is not None:
        waited = (row.started_at - row.opened_at).total_seconds()
        derived[MetricName.SECONDS_WAIT] = max(0.0, waited)
    now = next((measured[name] for name in _START if name in measured), None)
    then = session.scalar(
        select(Metric.value)
        .where(
            Metric.run_id == row.run_id,
            Metric.client_id == row.client_id,
            Metric.round_number == row.round_number - 1,
            Metric.name == MetricName.ACCURACY_AFTER_TRAINING,
            Metric.step.is_(None),
        )
        .order_by(Metric.id.desc())
        .limit(1)
    )
    if now is not None and then is not None:
        derived[MetricName.AGGREGATION_GAP] = now - then
    return derived
