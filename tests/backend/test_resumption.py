"""Pausing a run, and going on with one that was paused or that failed."""

from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import func, select, update

from backend import leases
from backend.contracts.enums import EventKind, RoundStatus, RunStatus, UpdateStatus
from backend.contracts.jobs import CloseRound, Job, OpenRound, RunClientUpdate
from backend.contracts.metrics import MetricName
from backend.contracts.stopping import StopRule
from backend.db.models import ClientUpdate, Event, Round, Run
from backend.db.session import SessionFactory
from backend.journal import record_metrics
from backend.lifecycle import change_round, fail_run, lock_run
from backend.resumption import pause_run, resume_run
from backend.settings import Settings
from backend.stopping import stop_if_learned_enough
from backend.sweep import sweep_once
from tests.backend.rows import OpenRun, add_open_run
from tests.backend.test_leases import run_out, take
from tests.backend.test_round_policy import (
    DROP,
    fail,
    finish,
    hand_in,
    open_run,
    run_of,
    sent,
    statuses,
    updates,
)

__all__ = ["sent"]  # a fixture


def pause(session_factory: SessionFactory, rows: OpenRun) -> None:
    with session_factory() as session:
        assert pause_run(session, rows.run_id, "ada")
        session.commit()


def resume(session_factory: SessionFactory, rows: OpenRun) -> list[Job] | None:
    with session_factory() as session:
        jobs = resume_run(session, rows.run_id, "ada")
        session.commit()
        return jobs


def test_a_paused_run_begins_nothing_but_takes_what_is_under_way(
    session_factory: SessionFactory, sent: list[Job]
) -> None:
    with session_factory() as session:
        rows = add_open_run(session, num_clients=2)
    working = take(session_factory, rows.update_ids[0])
    pause(session_factory, rows)
    with session_factory() as session:
        assert leases.claim(session, rows.update_ids[1], "worker", 30) is None
    assert hand_in(session_factory, working) == []
    sweep_once(session_factory, Settings(lease_seconds=1e-6, remote_wait_hours=1e-9))
    assert sent == []
    assert statuses(session_factory, rows) == ["accepted", "pending"]
    assert resume(session_factory, rows) == [RunClientUpdate(client_update_id=rows.update_ids[1])]
    assert finish(session_factory, rows.update_ids[1]) == [CloseRound(round_id=rows.round_id)]
    assert run_of(session_factory, rows).status is RunStatus.RUNNING


def test_a_pause_does_not_use_up_the_deadline(session_factory: SessionFactory) -> None:
    rows = open_run(session_factory, **DROP)
    pause(session_factory, rows)
    with session_factory() as session:  # paused ten minutes ago, ten seconds before the deadline
        now = session.scalar(select(func.now()))
        assert now is not None
        before = now - timedelta(minutes=10)
        session.execute(update(Run).values(paused_at=before))
        session.execute(update(Round).values(deadline_at=before + timedelta(seconds=10)))
        session.commit()
    sweep_once(session_factory, Settings())
    resume(session_factory, rows)
    with session_factory() as session:
        round_ = session.get_one(Round, rows.round_id)
        left = session.scalar(select(Round.deadline_at - func.now()))
    assert not round_.is_overdue
    assert left is not None
    assert timedelta(seconds=0) < left <= timedelta(seconds=10)


def test_a_failed_run_goes_on_in_the_round_in_which_it_failed(
    session_factory: SessionFactory,
) -> None:
    with session_factory() as session:
        rows = add_open_run(session, num_clients=3)
    finish(session_factory, rows.update_ids[0])
    fail(session_factory, rows.update_ids[1])
    assert statuses(session_factory, rows) == ["accepted", "failed", "cancelled"]
    again = [RunClientUpdate(client_update_id=update_id) for update_id in rows.update_ids[1:]]
    assert resume(session_factory, rows) == again
    run = run_of(session_factory, rows)
    assert (run.status, run.error, run.ended_at) == (RunStatus.RUNNING, None, None)
    assert statuses(session_factory, rows) == ["accepted", "pending", "pending"]
    assert finish(session_factory, rows.update_ids[1]) == []
    assert finish(session_factory, rows.update_ids[2]) == [CloseRound(round_id=rows.round_id)]
    assert resume(session_factory, rows) is None  # neither paused nor failed


def test_lost_attempts_are_counted_anew_after_a_resume(session_factory: SessionFactory) -> None:
    with session_factory() as session:
        rows = add_open_run(session, num_clients=1)
    for expected in (RunStatus.RUNNING, RunStatus.FAILED, RunStatus.RUNNING, RunStatus.FAILED):
        take(session_factory, rows.update_ids[0])
        run_out(session_factory, rows.update_ids[0])
        with session_factory() as session:
            leases.expire(session, rows.update_ids[0], max_attempts=2)
            session.commit()
        assert run_of(session_factory, rows).status is expected
        if expected is RunStatus.FAILED:
            assert resume(session_factory, rows) is not None
    assert updates(session_factory, rows)[0].fence == 4


def test_a_run_that_failed_in_its_aggregation_aggregates_again(
    session_factory: SessionFactory,
) -> None:
    with session_factory() as session:
        rows = add_open_run(session, num_clients=2)
    for update_id in rows.update_ids:
        finish(session_factory, update_id)
    with session_factory() as session:
        fail_run(session, rows.run_id, "the disk is full")
        session.commit()
    assert resume(session_factory, rows) == [CloseRound(round_id=rows.round_id)]
    assert [row.aggregated_in for row in updates(session_factory, rows)] == [1, 1]


def test_a_run_that_failed_between_rounds_opens_the_next(session_factory: SessionFactory) -> None:
    with session_factory() as session:
        rows = add_open_run(session, num_clients=1)
        change_round(session, rows.round_id, RoundStatus.AGGREGATING)
        change_round(session, rows.round_id, RoundStatus.CLOSED)
        fail_run(session, rows.run_id, "the store is full")
        session.commit()
    assert resume(session_factory, rows) == [OpenRound(run_id=rows.run_id)]


def test_a_cancelled_update_of_a_cancelled_run_stays(session_factory: SessionFactory) -> None:
    rows = open_run(session_factory, 2)
    with session_factory() as session:
        session.execute(update(Run).values(status=RunStatus.CANCELLED))
        session.execute(update(ClientUpdate).values(status=UpdateStatus.CANCELLED))
        session.commit()
    assert resume(session_factory, rows) is None
    assert statuses(session_factory, rows) == ["cancelled", "cancelled"]


@pytest.mark.parametrize(
    ("rule", "means", "stops"),
    [
        ({"target": 0.8}, [0.5, 0.79], False),
        ({"target": 0.8}, [0.5, 0.8], True),
        ({"target": 0.5, "metric": "train_loss"}, [0.9, 0.6], False),
        ({"target": 0.5, "metric": "train_loss"}, [0.9, 0.4], True),
        ({"patience": 2}, [0.5, 0.4], False),  # two rounds after the best are not over yet
        ({"patience": 2}, [0.5, 0.4, 0.5], True),
        ({"patience": 2}, [0.5, 0.4, 0.51], False),
        ({"patience": 2, "min_delta": 0.05}, [0.5, 0.4, 0.51], True),
        ({"patience": 1, "metric": "train_loss"}, [0.9, 0.8], False),
        ({"patience": 1, "metric": "train_loss"}, [0.8, 0.9], True),
        ({"patience": 1}, [], False),
    ],
)
def test_when_a_run_has_learned_enough(
    rule: dict[str, Any], means: list[float], stops: bool
) -> None:
    assert (StopRule.model_validate(rule).reason(means) is not None) == stops


def test_a_rule_that_never_stops_is_refused() -> None:
    with pytest.raises(ValueError, match="neither target nor patience"):
        StopRule.model_validate({})


@pytest.mark.parametrize(("second", "stopped_after"), [(0.9, 1), (0.6, None)])
def test_the_mean_over_the_clients_decides(
    session_factory: SessionFactory, second: float, stopped_after: int | None
) -> None:
    with session_factory() as session:
        rows = add_open_run(session, num_clients=2)
        run = lock_run(session, rows.run_id)
        run.num_rounds = 5
        run.stop_when = StopRule(target=0.8).model_dump(mode="json")
        for client_id, value in zip(rows.client_ids, (0.7, second), strict=True):
            metrics = {MetricName.ACCURACY_AFTER_TRAINING: value}
            record_metrics(session, rows.run_id, client_id, 1, metrics)
            record_metrics(session, rows.run_id, client_id, 1, {MetricName.TRAIN_LOSS: 9}, step=1)
        session.commit()
        stop_if_learned_enough(session, lock_run(session, rows.run_id))
        session.commit()
        kinds = session.scalars(select(Event.kind)).all()
    assert run_of(session_factory, rows).stopped_after == stopped_after
    assert (EventKind.RUN_STOPPED_EARLY in kinds) == (stopped_after is not None)
