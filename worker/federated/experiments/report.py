"""What an experiment found, for people: a table with paired intervals, and a verdict."""

import statistics
from collections.abc import Iterable, Mapping, Sequence

from backend.contracts.evidence import Verdict, judge, paired
from worker.federated.experiments.arm_kinds import Arm, LocalArm, UntrainedArm
from worker.federated.experiments.records import Record

MAIN_ARM = "h2tune"
CONTROL = "_permuted"
"""What follows the name of an arm in the name of its permuted control."""

_VERDICTS = {
    Verdict.TRANSFER: "**Transfer**: both intervals exclude zero",
    Verdict.SHRINKAGE: "**Shrinkage, not transfer**: the control does not do worse",
    Verdict.UNCONTROLLED_GAIN: "A gain whose cause is open: no control was run",
    Verdict.NO_GAIN: "**No gain from sharing shown**",
    Verdict.TOO_FEW_SEEDS: "Not settled: one seed has no spread",
}


def mean_by_seed(
    records: Iterable[Record], setting: str, arm: str, *, field: str = "accuracy_after_aggregation"
) -> dict[int, float]:
    """One column of one arm, mean over clients, by seed."""
    found: dict[int, list[float]] = {}
    for line in records:
        if line.setting == setting and line.arm == arm:
            found.setdefault(line.seed, []).append(getattr(line, field))
    return {seed: statistics.fmean(values) for seed, values in sorted(found.items())}


def best_alone(means: Mapping[str, Mapping[int, float]], arms: Sequence[Arm]) -> str | None:
    """The arm without sharing that has the highest mean; None if there is none."""
    alone = [a.name for a in arms if isinstance(a, LocalArm | UntrainedArm) and a.name in means]
    return max(alone, key=lambda name: statistics.fmean(means[name].values()), default=None)


def markdown(records: Sequence[Record], arms: Sequence[Arm], setting: str) -> str:
    """A table of one setting, and sentences that say transfer or shrinkage.

    Differences are against the best arm in which clients are alone (local or untrained), and
    against the permuted control, each paired by seed. The control of an arm is the one that has its
    name with `_permuted` after it, else that of h2tune. h2tune gets a sentence, and so does every
    other arm that has a control of its own.
    """
    means = {arm.name: mean_by_seed(records, setting, arm.name) for arm in arms}
    means = {name: values for name, values in means.items() if values}
    best = best_alone(means, arms)
    rows = [
        f"### {setting}",
        "",
        "| Arm | After local steps | After aggregation | SD | n | Against the best local arm "
        "| Against the permuted control | Update cosine |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, values in means.items():
        local = mean_by_seed(records, setting, name, field="accuracy_after_local")
        spread = f"{statistics.stdev(values.values()):.3f}" if len(values) > 1 else ""
        label = f"{name} (best local)" if name == best else name
        rows.append(
            f"| {label} | {statistics.fmean(local.values()):.3f} "
            f"| {statistics.fmean(values.values()):.3f} | {spread} | {len(values)} "
            f"| {_against(means, name, best)} | {_against(means, name, _control(means, name))} "
            f"| {_cosine(records, setting, name)} |"
        )
    if best is not None:
        for name in means:
            if name == MAIN_ARM or name + CONTROL in means:
                rows += ["", verdict(means, name, best)]
    return "\n".join([*rows, ""])


def verdict(means: Mapping[str, Mapping[int, float]], name: str, best: str) -> str:
    """Whether sharing gained over the best local arm, and whether the gain needs the real matrices.

    Args:
        means: by arm and seed.
        name: of the arm that shares.
        best: name of the best arm without sharing.
    """
    gain = paired(means[name], means[best])
    control = means.get(_control(means, name))
    over_control = None if control is None else paired(means[name], control)
    if gain is None:
        return f"{name} and {best} have no seed in common."
    controlled = "" if over_control is None else f", {over_control} over the permuted control"
    said = _VERDICTS[judge(gain, over_control)]
    return f"{said}. {name} gains {gain} over {best}{controlled} (n = {gain.n})."


def _control(means: Mapping[str, Mapping[int, float]], name: str) -> str:
    return name + CONTROL if name + CONTROL in means else MAIN_ARM + CONTROL


def _against(means: Mapping[str, Mapping[int, float]], name: str, other: str | None) -> str:
    if other is None or other == name or other not in means:
        return ""
    difference = paired(means[name], means[other])
    return "" if difference is None else str(difference)


def _cosine(records: Iterable[Record], setting: str, arm: str) -> str:
    known = [
        float(line.update_cosine)
        for line in records
        if (line.setting, line.arm) == (setting, arm) and line.update_cosine
    ]
    return f"{statistics.fmean(known):.2f}" if known else ""
