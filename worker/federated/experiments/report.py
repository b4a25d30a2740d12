"""What an experiment found: a CSV of every number, a table with intervals, a verdict, a chart."""

import csv
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import plotly.graph_objects as go

from worker.federated.experiments.arms import Outcome
from worker.federated.experiments.config import Arm, LocalArm, Member, UntrainedArm
from worker.federated.simulation import SimulatedClient

COLUMNS = (
    "setting",
    "arm",
    "seed",
    "client",
    "model",
    "layers",
    "hidden",
    "rank",
    "task",
    "accuracy_initial",
    "accuracy_after_local",
    "accuracy_after_aggregation",
    "learning_rate",
    "round",
    "bytes_up",
)

# fmt: off
_STUDENT_95 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228,
    2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086,
)
# fmt: on
"""Two-sided 95 % quantiles of Student's t for 1 to 20 degrees of freedom."""


@dataclass(frozen=True, slots=True)
class Line:
    """One client in one arm with one seed."""

    setting: str
    arm: str
    seed: int
    member: Member
    client: SimulatedClient
    outcome: Outcome

    def values(self) -> tuple[str | int | float, ...]:
        """In the order of `COLUMNS`."""
        spec = self.client.spec()
        rate = self.outcome.learning_rate
        return (
            self.setting,
            self.arm,
            self.seed,
            self.outcome.client_id,
            self.member.model_name,
            spec.architecture.num_layers,
            spec.architecture.hidden_size,
            spec.lora_rank,
            str(self.member.task),
            self.outcome.accuracy_initial,
            self.outcome.accuracy_after_local,
            self.outcome.accuracy_after_aggregation,
            "" if rate is None else rate,
            self.outcome.round_number,
            self.outcome.bytes_up,
        )


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean and the half width of its 95 % confidence interval."""

    mean: float
    half_width: float | None  # None: one value gives no interval

    def __str__(self) -> str:
        if self.half_width is None:
            return f"{self.mean:+.3f}"
        return f"{self.mean:+.3f} ± {self.half_width:.3f}"

    @property
    def is_positive(self) -> bool:
        """True when the whole interval lies above zero."""
        return self.half_width is not None and self.mean - self.half_width > 0


def interval(values: Sequence[float]) -> Interval:
    """Student's interval of the mean of independent values, at most 21."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return Interval(mean, None)
    error = statistics.stdev(values) / len(values) ** 0.5
    return Interval(mean, _STUDENT_95[len(values) - 2] * error)


def write_csv(path: Path, lines: Iterable[Line]) -> None:
    """Writes every number, one line per client, arm and seed."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        writer.writerows(line.values() for line in lines)


def mean_by_seed(lines: Iterable[Line], setting: str, arm: str) -> dict[int, float]:
    """Accuracy after aggregation, mean over clients, by seed."""
    found: dict[int, list[float]] = {}
    for line in lines:
        if line.setting == setting and line.arm == arm:
            found.setdefault(line.seed, []).append(line.outcome.accuracy_after_aggregation)
    return {seed: statistics.fmean(values) for seed, values in sorted(found.items())}


def paired(left: Mapping[int, float], right: Mapping[int, float]) -> Interval:
    """Interval of the difference, paired by seed."""
    return interval([value - right[seed] for seed, value in left.items() if seed in right])


def markdown(lines: Sequence[Line], arms: Sequence[Arm], setting: str) -> str:
    """A table of one setting, and a sentence that says transfer or shrinkage.

    Differences are against the best arm in which clients are alone (local or untrained), paired by
    seed.
    """
    means = {arm.name: mean_by_seed(lines, setting, arm.name) for arm in arms}
    means = {name: values for name, values in means.items() if values}
    alone = [
        arm.name for arm in arms if isinstance(arm, LocalArm | UntrainedArm) and arm.name in means
    ]
    best = max(alone, key=lambda name: statistics.fmean(means[name].values()), default=None)
    rows = [f"### {setting}", "", "| Arm | Mean | SD | Seeds | Against the best local arm |"]
    rows.append("|---|---|---|---|---|")
    for name, values in means.items():
        spread = f"{statistics.stdev(values.values()):.3f}" if len(values) > 1 else ""
        by_seed = " ".join(f"{value:.3f}" for value in values.values())
        against = "" if best in {None, name} else str(paired(values, means[str(best)]))
        label = f"{name} (best local)" if name == best else name
        rows.append(
            f"| {label} | {statistics.fmean(values.values()):.3f} | {spread} | {by_seed} "
            f"| {against} |"
        )
    if best is not None:
        rows += ["", verdict(means, best)]
    return "\n".join([*rows, ""])


def verdict(means: Mapping[str, Mapping[int, float]], best_alone: str) -> str:
    """Whether sharing gained, and whether the gain needs the real matrices."""
    if "h2tune" not in means:
        return ""
    gain = paired(means["h2tune"], means[best_alone])
    if "h2tune_permuted" not in means:
        return f"h2tune gains {gain} over {best_alone}; no permuted control was run."
    over_control = paired(means["h2tune"], means["h2tune_permuted"])
    numbers = f"{gain} over {best_alone}, {over_control} over the permuted control"
    if gain.is_positive and over_control.is_positive:
        return f"**Transfer**: h2tune gains {numbers}; both intervals exclude zero."
    if gain.mean > 0 and over_control.mean > 0:
        return f"Points to transfer, not settled: h2tune gains {numbers}."
    if gain.mean > 0:
        return f"**Shrinkage**, no transfer: h2tune gains {numbers}."
    return f"No gain from sharing: h2tune gains {numbers}."


def write_chart(path: Path, lines: Sequence[Line], arms: Sequence[Arm], setting: str) -> None:
    """Bars of the means with their intervals, as a page that needs no network."""
    means = {arm.name: mean_by_seed(lines, setting, arm.name) for arm in arms}
    shown = {name: interval(list(values.values())) for name, values in means.items() if values}
    figure = go.Figure(
        go.Bar(
            x=list(shown),
            y=[value.mean for value in shown.values()],
            error_y={"type": "data", "array": [v.half_width or 0.0 for v in shown.values()]},
        )
    )
    figure.update_layout(
        title=setting, yaxis_title="accuracy after aggregation", template="plotly_white"
    )
    figure.write_html(path, include_plotlyjs=True)
