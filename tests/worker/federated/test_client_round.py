import time

import pytest
import torch

from backend.contracts.metrics import MetricName
from worker.federated.client_round import (
    Measured,
    Stopwatch,
    before_and_after,
    below,
    relative_change,
    take,
)


def test_names_below_a_prefix_come_back() -> None:
    tensors = {"a/b": torch.ones(1), "c": torch.zeros(1)}
    assert take("x", {**below("x", tensors), "xy/c": torch.ones(1)}) == tensors
    assert take("x", None) == {}


def test_relative_change() -> None:
    start = {"a": torch.tensor([3.0]), "b": torch.tensor([4.0])}
    end = {"a": torch.tensor([3.0]), "b": torch.tensor([3.0])}
    assert relative_change(start, end) == pytest.approx(1 / 5)
    zero = {"a": torch.zeros(1)}
    assert relative_change(zero, zero) == 0
    assert relative_change(zero, {"a": torch.ones(1)}) == 1


def test_stopwatch_adds_up() -> None:
    watch = Stopwatch()
    for _ in range(2):
        with watch.measure(MetricName.SECONDS_LOAD):
            time.sleep(0.01)
    assert watch.metrics[MetricName.SECONDS_LOAD] >= 0.02


def test_measurements_that_were_not_made_are_left_out() -> None:
    assert before_and_after(Measured(0.5, None), Measured(0.75, 1.0)) == {
        MetricName.ACCURACY_BEFORE_TRAINING: 0.5,
        MetricName.ACCURACY_AFTER_TRAINING: 0.75,
        MetricName.VALIDATION_LOSS_AFTER_TRAINING: 1.0,
    }
