from uuid import UUID

import pytest

from backend.contracts.enums import RunStatus
from backend.contracts.metrics import MetricName
from backend.contracts.params.h2tune import H2TuneParams
from backend.contracts.params.lora import LocalOnlyParams
from backend.contracts.runs import LiveRun, MetricPoint, RunCreate
from backend.contracts.training import TrainingConfig
from dashboard.components.delivered import Pair, Reached, find_baseline, pairs
from dashboard.components.live_history import LiveHistory, mean, newest, running_total
from tests.dashboard.fake_platform import FakePlatform, now, three_clinics

NORTH = UUID(int=1)


def new_run(**settings: object):
    platform = FakePlatform()
    create = RunCreate(**({"strategy": H2TuneParams()} | settings))
    return platform.add_run(three_clinics(platform), create, RunStatus.RUNNING)


def point(
    number: int, value: float, *, at: int, name=MetricName.ACCURACY_AFTER_TRAINING, step=None
) -> MetricPoint:
    return MetricPoint(
        id=at,
        client_id=NORTH,
        round_number=number,
        scope="round" if step is None else "progress",
        step=step,
        name=name,
        value=value,
        created_at=now(),
    )


def history_of(*points: MetricPoint) -> LiveHistory:
    run = new_run()
    history = LiveHistory(run)
    history.absorb(LiveRun(run=run, rounds=[], metrics=list(points), events=[], cursor=len(points)))
    return history


def test_absorbing_an_answer_twice_changes_nothing() -> None:
    run = new_run()
    live = LiveRun(run=run, rounds=[], metrics=[point(1, 0.5, at=4)], events=[], cursor=4)
    history = LiveHistory(run)
    history.absorb(live)
    history.absorb(live)
    assert list(history.metrics) == [4]
    assert history.cursor == 4
    assert history.totals(MetricName.ACCURACY_AFTER_TRAINING) == {1: 0.5}


def test_the_cursor_never_goes_back() -> None:
    run = new_run()
    history = LiveHistory(run, cursor=9)
    history.absorb(LiveRun(run=run, rounds=[], metrics=[], events=[], cursor=3))
    assert history.cursor == 9


def test_the_newest_value_of_a_repeated_attempt_wins_in_any_order() -> None:
    history = history_of(point(1, 0.9, at=7), point(1, 0.1, at=3))
    assert history.per_round(MetricName.ACCURACY_AFTER_TRAINING) == {NORTH: {1: 0.9}}


def test_progress_is_no_round_value() -> None:
    history = history_of(point(1, 2.0, at=1, name=MetricName.TRAIN_LOSS, step=1))
    assert history.per_round(MetricName.TRAIN_LOSS) == {}


def test_loss_of_rounds_is_put_end_to_end_and_repeats_overwrite() -> None:
    loss = MetricName.TRAIN_LOSS
    history = history_of(
        point(1, 9.0, at=1, name=loss, step=1),
        point(1, 3.0, at=2, name=loss, step=1),  # a second attempt
        point(1, 2.0, at=3, name=loss, step=2),
        point(2, 1.0, at=4, name=loss, step=1),
    )
    # Rounds of 40 steps each, of which only some were reported.
    assert history.loss_by_step() == {NORTH: [(1, 3.0), (2, 2.0), (41, 1.0)]}
    history.run = new_run(training=TrainingConfig(local_steps=None))
    assert history.loss_by_step() == {NORTH: [(1, 3.0), (2, 2.0), (3, 1.0)]}


def test_loss_by_round_is_the_mean_that_a_client_reported() -> None:
    loss = MetricName.TRAIN_LOSS
    history = history_of(
        point(2, 1.0, at=1, name=loss),
        point(1, 3.0, at=2, name=loss),
        point(1, 9.0, at=3, name=loss, step=4),
    )
    assert history.loss_by_round() == {NORTH: [(1, 3.0), (2, 1.0)]}


def test_newest_mean_and_running_total() -> None:
    assert newest({NORTH: {1: 0.1, 3: 0.3, 2: 0.2}}) == {NORTH: 0.3}
    assert mean({UUID(int=1): 0.2, UUID(int=2): 0.4}) == pytest.approx(0.3)
    assert mean({}) is None
    assert running_total({3: 1.0, 1: 2.0}) == {1: 2.0, 3: 3.0}


def test_like_is_compared_with_like() -> None:
    history = history_of(point(1, 0.2, at=1), point(2, 0.4, at=2))
    baseline = Reached(delivered={NORTH: 0.9}, after_training={NORTH: {1: 0.1, 2: 0.3, 5: 0.9}})
    assert pairs(history, baseline) == {NORTH: Pair(own=0.4, local=0.3)}
    delivered = point(3, 0.8, at=3, name=MetricName.ACCURACY_DELIVERED)
    history = history_of(point(2, 0.4, at=2), delivered)
    assert pairs(history, baseline) == {NORTH: Pair(own=0.8, local=0.9)}
    assert pairs(history, None) == {}


def test_only_a_run_that_differs_in_its_strategy_alone_is_a_baseline() -> None:
    run = new_run(seed=1)
    done = {"status": RunStatus.COMPLETED}
    local = {"strategy": LocalOnlyParams(), "seed": 1}
    good = new_run(**local).model_copy(update=done)
    others = [
        new_run(**local).model_copy(update={"status": RunStatus.FAILED}),
        new_run(**(local | {"seed": 2})).model_copy(update=done),
        new_run(**local, num_rounds=9).model_copy(update=done),
        new_run(**local, training=TrainingConfig(local_steps=1)).model_copy(update=done),
        new_run(seed=1).model_copy(update=done),
        new_run(strategy=LocalOnlyParams(guard="validation"), seed=1).model_copy(update=done),
    ]
    assert find_baseline(run, others) is None
    coming = new_run(**local)
    assert find_baseline(run, [coming, *others]) == coming
    assert find_baseline(run, [coming, *others, good]) == good
    assert find_baseline(good, [good]) is None
