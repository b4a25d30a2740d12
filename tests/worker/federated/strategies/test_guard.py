"""What the guard remembers, whatever the strategy."""

import torch

from backend.contracts.metrics import MetricName
from worker.federated.strategies.guard import Served, better, remembered, still_kept

OLD, NEW = {"factors/A/x": torch.zeros(1)}, {"factors/A/x": torch.ones(1)}
BEFORE = MetricName.VALIDATION_LOSS_BEFORE_TRAINING
AFTER = MetricName.VALIDATION_LOSS_AFTER_TRAINING


def test_the_lower_loss_wins_and_the_newer_of_equals() -> None:
    known = Served(1.0, OLD)
    assert better(known, 1.1, NEW) is known
    assert better(known, 1.0, NEW) == Served(1.0, NEW)
    assert better(None, 9.0, NEW) == Served(9.0, NEW)
    assert better(known, None, NEW) is known  # not measured
    assert better(None, None, NEW) is None  # no validation split


def test_what_is_kept_is_the_best_of_both_ends_of_a_round_and_of_what_was_kept() -> None:
    assert still_kept(None, {}, OLD, NEW) == {}
    first = still_kept(None, {BEFORE: 0.5, AFTER: 0.7}, OLD, NEW)
    assert remembered(first) == Served(0.5, OLD)
    assert remembered(still_kept(first, {}, NEW, NEW)) == Served(0.5, OLD)
    assert remembered(still_kept(first, {AFTER: 0.6}, NEW, NEW)) == Served(0.5, OLD)
    assert remembered(still_kept(first, {AFTER: 0.4}, OLD, NEW)) == Served(0.4, NEW)
