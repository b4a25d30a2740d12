"""What follows from the rows: waiting, and what an aggregation did to a client."""

from datetime import timedelta

import pytest
from sqlalchemy.orm import Session

from backend.contracts.metrics import MetricName
from backend.db.models import ClientUpdate, Round
from backend.derived_metrics import derived_metrics
from backend.journal import record_metrics
from tests.backend.rows import add_open_run

BEFORE, AFTER = MetricName.ACCURACY_BEFORE_TRAINING, MetricName.ACCURACY_AFTER_TRAINING


def test_the_gap_is_to_the_same_client_one_round_earlier(session: Session) -> None:
    rows = add_open_run(session)
    one, other = rows.client_ids
    session.get_one(Round, rows.round_id).round_number = 2
    record_metrics(session, rows.run_id, one, 1, {AFTER: 0.5, BEFORE: 0.1})
    record_metrics(session, rows.run_id, one, 1, {AFTER: 0.9}, step=3)
    record_metrics(session, rows.run_id, other, 1, {AFTER: 0.25})
    session.commit()
    first, second = rows.update_ids
    gap = MetricName.AGGREGATION_GAP
    assert derived_metrics(session, first, {BEFORE: 0.4, AFTER: 0.8})[gap] == pytest.approx(-0.1)
    delivered = {MetricName.ACCURACY_DELIVERED: 0.75}
    assert derived_metrics(session, second, delivered)[gap] == pytest.approx(0.5)
    assert gap not in derived_metrics(session, first, {AFTER: 0.8})


def test_waiting_runs_from_the_opening_to_the_attempt(session: Session) -> None:
    rows = add_open_run(session)
    update = session.get_one(ClientUpdate, rows.update_ids[0])
    opened_at = session.get_one(Round, rows.round_id).opened_at
    assert derived_metrics(session, update.id, {}) == {}
    update.started_at = opened_at + timedelta(seconds=7.5)
    session.commit()
    assert derived_metrics(session, update.id, {}) == {MetricName.SECONDS_WAIT: 7.5}
