"""Intervals and verdicts of experiments."""

import pytest

from worker.federated.experiments.report import interval, paired, verdict


def test_interval_is_students() -> None:
    # Mean 2, standard deviation 1, n = 3: 4.303 / sqrt(3).
    found = interval([1.0, 2.0, 3.0])
    assert found.mean == 2.0
    assert found.half_width == pytest.approx(2.4843, abs=1e-3)
    assert not found.is_positive
    assert interval([5.0]).half_width is None
    assert not interval([5.0]).is_positive


def test_differences_are_paired_by_seed() -> None:
    found = paired({0: 0.9, 1: 0.8, 2: 0.7}, {0: 0.8, 1: 0.7, 2: 0.6})
    assert found.mean == pytest.approx(0.1)
    assert found.half_width == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize(
    ("shared", "permuted", "expected"),
    [
        ([0.80, 0.81, 0.79], [0.70, 0.71, 0.69], "**Transfer**"),
        ([0.80, 0.81, 0.79], [0.82, 0.83, 0.81], "**Shrinkage**"),
        ([0.80, 0.60, 0.79], [0.70, 0.71, 0.69], "not settled"),
        ([0.60, 0.61, 0.59], [0.50, 0.51, 0.49], "No gain"),
    ],
)
def test_a_gain_that_survives_the_control_is_no_transfer(
    shared: list[float], permuted: list[float], expected: str
) -> None:
    means = {
        "h2tune": dict(enumerate(shared)),
        "h2tune_permuted": dict(enumerate(permuted)),
        "local_lora": {0: 0.70, 1: 0.71, 2: 0.69},
    }
    assert expected in verdict(means, "local_lora")
