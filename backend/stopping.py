"""Ends the training of a run that has learned enough, when a round closes."""

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from backend.contracts.enums import EventKind
from backend.contracts.metrics import MetricName
from backend.contracts.stopping import StopRule
from backend.db.models import Metric, Run
from backend.journal import record_event


def stop_if_learned_enough(session: Session, run: Run) -> None:
    """Makes the round that closes the last one to train, if the run's rule says so.

    Args:
        session: the run's row is locked in it.
        run: its newest round is the one that closes.
    """
    if run.stop_when is None or run.round_number >= run.num_rounds:
        return
    rule = StopRule.model_validate(run.stop_when)
    rows = session.execute(
        select(Metric.round_number, func.avg(Metric.value))
        .where(
            Metric.run_id == run.id,
            Metric.name == MetricName(rule.metric),
            Metric.client_id.is_not(None),
            Metric.step.is_(None),
            Metric.round_number <= run.round_number,
        )
        .group_by(Metric.round_number)
        .order_by(Metric.round_number)
    ).all()
    if not rows or rows[-1][0] != run.round_number:
        return  # nobody measured it in this round
    reason = rule.reason([float(mean) for _, mean in rows])
    if reason is None:
        return
    run.stopped_after = run.round_number
    record_event(
        session,
        run.id,
        EventKind.RUN_STOPPED_EARLY,
        f"{reason} The delivery follows after {run.round_number} of {run.num_rounds} rounds.",
        round_number=run.round_number,
    )
