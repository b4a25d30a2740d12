"""What repeated measurements show: spreads, paired differences, verdicts and Pareto fronts.

Used by comparisons of the platform and by the experiments of the core, so that both say the same
of the same numbers. Seeds are the repetitions: clients are averaged first, because clients of one
run share everything that was exchanged and are not independent of each other.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from enum import StrEnum

from pydantic import BaseModel, ConfigDict, Field

# fmt: off
_STUDENT_95 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228,
    2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086,
)
# fmt: on
"""Two-sided 95 % quantiles of Student's t for 1 to 20 degrees of freedom."""


class Verdict(StrEnum):
    """What a comparison says about sharing in one arm."""

    TRANSFER = "transfer"  # better than the best local arm, and than the permuted control
    SHRINKAGE = "shrinkage"  # better than the best local arm, but not shown to beat the control
    UNCONTROLLED_GAIN = "uncontrolled gain"  # better than the best local arm; no control was run
    NO_GAIN = "no gain shown"
    TOO_FEW_SEEDS = "too few seeds"  # one seed has no spread


class Spread(BaseModel):
    """Mean and spread of one value over seeds."""

    model_config = ConfigDict(frozen=True)

    mean: float
    sd: float | None = Field(description="standard deviation over seeds; null for a single one")
    n: int = Field(description="number of seeds")


class Interval(BaseModel):
    """A mean with half the width of its 95 % confidence interval."""

    model_config = ConfigDict(frozen=True)

    mean: float
    half_width: float | None = Field(description="of the 95 % interval; null for a single seed")
    n: int = Field(description="number of seeds")

    def __str__(self) -> str:
        if self.half_width is None:
            return f"{self.mean:+.3f}"
        return f"{self.mean:+.3f} ± {self.half_width:.3f}"

    @property
    def is_positive(self) -> bool:
        """True when the whole interval lies above zero."""
        return self.half_width is not None and self.mean - self.half_width > 0


def student_95(degrees_of_freedom: int) -> float:
    """The two-sided 95 % quantile of Student's t.

    Tabled up to 20; above by the expansion around the normal quantile (Abramowitz and Stegun
    26.7.5), which is right to three decimals there.

    Raises:
        ValueError: fewer than 1 degree of freedom.
    """
    if degrees_of_freedom < 1:
        raise ValueError(f"degrees_of_freedom must be 1 or more, {degrees_of_freedom} was given")
    if degrees_of_freedom <= len(_STUDENT_95):
        return _STUDENT_95[degrees_of_freedom - 1]
    z, v = statistics.NormalDist().inv_cdf(0.975), degrees_of_freedom
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / v + second / v**2 + third / v**3


def spread(values: Sequence[float]) -> Spread:
    """Mean and sample standard deviation of 1 or more values."""
    sd = statistics.stdev(values) if len(values) > 1 else None
    return Spread(mean=statistics.fmean(values), sd=sd, n=len(values))


def interval(values: Sequence[float]) -> Interval:
    """Student's interval of the mean of 1 or more independent values."""
    found = spread(values)
    if found.sd is None:
        return Interval(mean=found.mean, half_width=None, n=1)
    half_width = student_95(found.n - 1) * found.sd / math.sqrt(found.n)
    return Interval(mean=found.mean, half_width=half_width, n=found.n)


def paired(left: Mapping[int, float], right: Mapping[int, float]) -> Interval | None:
    """Interval of `left - right`, paired by seed; None when no seed is in both."""
    differences = [value - right[seed] for seed, value in sorted(left.items()) if seed in right]
    return interval(differences) if differences else None


def judge(gain: Interval, over_control: Interval | None) -> Verdict:
    """What to say of an arm.

    Args:
        gain: paired difference to the best arm in which clients are alone.
        over_control: paired difference to the arm's permuted control; None: none was run.
    """
    if gain.half_width is None or (over_control is not None and over_control.half_width is None):
        return Verdict.TOO_FEW_SEEDS
    if not gain.is_positive:
        return Verdict.NO_GAIN
    if over_control is None:
        return Verdict.UNCONTROLLED_GAIN
    return Verdict.TRANSFER if over_control.is_positive else Verdict.SHRINKAGE


def pareto_front(points: Mapping[str, tuple[float, float]]) -> set[str]:
    """The names of the points that no other one beats.

    Args:
        points: name -> (cost, value); lower cost and higher value are better. A point is beaten
            by one that is no worse in both and better in at least one, so equal points stay.
    """
    return {
        name
        for name, (cost, value) in points.items()
        if not any(
            other_cost <= cost
            and other_value >= value
            and (other_cost < cost or other_value > value)
            for other_cost, other_value in points.values()
        )
    }
