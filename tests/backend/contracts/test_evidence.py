"""Intervals, verdicts and Pareto fronts, with numbers derived by hand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backend.contracts.evidence import (
    Interval,
    Verdict,
    interval,
    judge,
    paired,
    pareto_front,
    spread,
    student_95,
)


def test_spread_is_of_the_sample() -> None:
    # Mean 0.7; squared deviations 0.01 + 0 + 0.01 over n - 1 = 2: variance 0.01.
    found = spread([0.6, 0.7, 0.8])
    assert found.mean == pytest.approx(0.7)
    assert found.sd == pytest.approx(0.1)
    assert found.n == 3
    assert spread([0.5]).sd is None


def test_interval_is_students() -> None:
    # Mean 2, standard deviation 1, n = 3: 4.303 / sqrt(3) = 2.4843.
    found = interval([1.0, 2.0, 3.0])
    assert found.mean == 2.0
    assert found.half_width == pytest.approx(2.4843, abs=1e-3)
    assert not found.is_positive
    assert interval([5.0]) == Interval(mean=5.0, half_width=None, n=1)
    assert not interval([5.0]).is_positive


@pytest.mark.parametrize(
    ("degrees_of_freedom", "quantile"),  # from a printed table
    [(1, 12.706), (2, 4.303), (20, 2.086), (21, 2.080), (30, 2.042), (60, 2.000), (120, 1.980)],
)
def test_quantiles_are_those_of_the_table(degrees_of_freedom: int, quantile: float) -> None:
    assert student_95(degrees_of_freedom) == pytest.approx(quantile, abs=6e-4)


def test_no_quantile_without_degrees_of_freedom() -> None:
    with pytest.raises(ValueError, match="0 was given"):
        student_95(0)


def test_differences_are_paired_by_seed() -> None:
    # Seed 9 has no partner. Differences 0.1, 0.3: mean 0.2, sd 0.141421, 12.706 * sd / sqrt(2).
    found = paired({0: 0.9, 1: 0.8, 9: 0.1}, {1: 0.5, 0: 0.8})
    assert found is not None
    assert (found.mean, found.n) == (pytest.approx(0.2), 2)
    assert found.half_width == pytest.approx(1.2706, abs=1e-3)
    assert paired({0: 0.9}, {1: 0.9}) is None


ABOVE = Interval(mean=0.10, half_width=0.04, n=3)
AROUND = Interval(mean=0.02, half_width=0.04, n=3)
BELOW = Interval(mean=-0.10, half_width=0.04, n=3)
TOUCHING = Interval(mean=0.04, half_width=0.04, n=3)
ONE_SEED = Interval(mean=0.10, half_width=None, n=1)


@pytest.mark.parametrize(
    ("gain", "over_control", "verdict"),
    [
        (ABOVE, ABOVE, Verdict.TRANSFER),
        (ABOVE, AROUND, Verdict.SHRINKAGE),
        (ABOVE, BELOW, Verdict.SHRINKAGE),
        (ABOVE, TOUCHING, Verdict.SHRINKAGE),
        (ABOVE, None, Verdict.UNCONTROLLED_GAIN),
        (TOUCHING, ABOVE, Verdict.NO_GAIN),
        (AROUND, ABOVE, Verdict.NO_GAIN),
        (BELOW, ABOVE, Verdict.NO_GAIN),
        (BELOW, None, Verdict.NO_GAIN),
        (ONE_SEED, ONE_SEED, Verdict.TOO_FEW_SEEDS),
        (ABOVE, ONE_SEED, Verdict.TOO_FEW_SEEDS),
        (ONE_SEED, None, Verdict.TOO_FEW_SEEDS),
    ],
)
def test_transfer_needs_both_intervals(
    gain: Interval, over_control: Interval | None, verdict: Verdict
) -> None:
    assert judge(gain, over_control) is verdict


def test_a_point_that_is_dearer_and_worse_is_not_on_the_front() -> None:
    points = {
        "free": (0.0, 0.40),
        "cheap": (10.0, 0.55),
        "dear": (99.0, 0.60),
        "dearer and no better": (100.0, 0.60),
        "worse": (10.0, 0.50),
        "twin of cheap": (10.0, 0.55),
    }
    assert pareto_front(points) == {"free", "cheap", "dear", "twin of cheap"}


@given(
    st.dictionaries(
        st.text(max_size=3),
        st.tuples(st.integers(0, 5).map(float), st.integers(0, 5).map(float)),
        min_size=1,
        max_size=12,
    )
)
def test_the_front_has_the_cheapest_best_and_every_other_point_is_beaten_by_it(
    points: dict[str, tuple[float, float]],
) -> None:
    front = pareto_front(points)
    cheapest = min(cost for cost, _ in points.values())
    best = max(value for _, value in points.values())
    assert any(points[name][0] == cheapest for name in front)
    assert any(points[name][1] == best for name in front)
    for name, (cost, value) in points.items():
        covered = any(points[f][0] <= cost and points[f][1] >= value for f in front)
        assert covered, name
