"""SQL of comparisons, and of the figures of their runs."""

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import Select, func, select
from sqlalchemy.dialects.postgresql import distinct_on
from sqlalchemy.orm import Session

from backend.contracts.enums import RunStatus
from backend.contracts.metrics import MetricName
from backend.db.models import Comparison, Event, Metric, Run

SUMMED = (MetricName.BYTES_UP, MetricName.BYTES_DOWN, MetricName.SECONDS_TRAIN)
NEWEST = (MetricName.ACCURACY_AFTER_TRAINING, MetricName.ACCURACY_DELIVERED)


@dataclass(frozen=True, slots=True)
class Figure:
    """One value of one client in one run."""

    run_id: UUID
    client_id: UUID
    name: MetricName
    value: float


def find(session: Session, comparison_id: UUID) -> Comparison | None:
    """One comparison."""
    return session.get(Comparison, comparison_id)


def of_federation_query(federation_id: UUID) -> Select[Comparison]:
    """All comparisons of a federation."""
    return select(Comparison).where(Comparison.federation_id == federation_id)


def runs_query(comparison_id: UUID) -> Select[Run]:
    """All runs of a comparison."""
    return select(Run).where(Run.comparison_id == comparison_id)


def find_runs(session: Session, comparison_ids: Sequence[UUID]) -> Sequence[Run]:
    """All runs of these comparisons, in the order of their ids."""
    return session.scalars(
        select(Run)
        .where(Run.comparison_id.in_(comparison_ids))
        .order_by(Run.id)
        .execution_options(populate_existing=True)
    ).all()


def events_query(comparison_id: UUID) -> Select[Event]:
    """All events of a comparison's runs."""
    return select(Event).join(Run, Event.run_id == Run.id).where(Run.comparison_id == comparison_id)


def find_figures(session: Session, comparison_id: UUID) -> list[Figure]:
    """What counts of the completed runs: one value per client and name.

    Accuracy before training is that of the first round, the other accuracies are the newest ones;
    bytes and seconds are sums over the rounds.
    """
    completed = select(Run.id).where(
        Run.comparison_id == comparison_id, Run.status == RunStatus.COMPLETED
    )
    measured = (
        Metric.run_id.in_(completed),
        Metric.step.is_(None),
        Metric.client_id.is_not(None),
    )
    place = (Metric.run_id, Metric.client_id, Metric.name)
    sums = (
        select(*place, func.sum(Metric.value))
        .where(*measured, Metric.name.in_(SUMMED))
        .group_by(*place)
    )
    first = select(*place, Metric.value).where(
        *measured,
        Metric.name == MetricName.ACCURACY_BEFORE_TRAINING,
        Metric.round_number == 1,
    )
    newest = (
        select(*place, Metric.value)
        .where(*measured, Metric.name.in_(NEWEST))
        .ext(distinct_on(*place))
        .order_by(*place, Metric.round_number.desc(), Metric.id.desc())
    )
    return [
        Figure(run_id, client_id, name, value)
        for query in (sums, first, newest)
        for run_id, client_id, name, value in session.execute(query)
        if client_id is not None  # so by the condition; for the types
    ]
