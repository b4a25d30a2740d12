"""A comparison for spreadsheets (every figure) and for people (a report)."""

import re
from collections.abc import Iterable, Sequence

from backend.contracts.comparisons import ArmResult, ComparisonResults, ResultRow
from backend.contracts.evidence import Interval, Spread
from backend.web.spreadsheet import csv_lines, safe_text

CSV_COLUMNS = tuple(ResultRow.model_fields)
NOTHING = "–"
_MARKS = re.compile(r"([\\`*_\[\]<>|#])")


def csv_table(rows: Iterable[ResultRow]) -> str:
    """One line for each arm, seed and client; numbers with all their digits."""
    return csv_lines([CSV_COLUMNS, *(_cells(row) for row in rows)])


def markdown(results: ComparisonResults) -> str:
    """Tables of accuracies and costs, the verdicts, and what failed."""
    comparison = results.comparison
    ended = f"{comparison.num_ended} of {sum(comparison.num_runs.values())} runs have ended"
    parts = [
        f"# {_escape(comparison.name)}",
        f"{len(comparison.arms)} arms, seeds {', '.join(map(str, comparison.seeds))}, "
        f"{comparison.num_rounds} rounds, the same clients, data and steps for all. "
        f"Status: {comparison.status.value} ({ended}).",
        "Accuracies are shares of each client's own test split: mean ± standard deviation over "
        "seeds. Differences are paired by seed, with 95 % confidence intervals (Student's t).",
        "## Verdicts",
        _verdicts(results),
        "## Delivered accuracy",
        _accuracy_table(results.arms),
        "## Against the controls",
        _difference_table(results),
        "## Cost",
        _cost_table(results.arms),
    ]
    failed = _failed(results)
    if failed:
        parts += ["## Runs without a result", failed]
    return "\n\n".join(parts) + "\n"


def _cells(row: ResultRow) -> list[object]:
    values = row.model_dump(mode="json").values()
    return [
        "" if value is None else safe_text(value) if isinstance(value, str) else repr(value)
        for value in values
    ]


def _verdicts(results: ComparisonResults) -> str:
    sentences = [f"- {_escape(arm.sentence)}" for arm in results.arms if arm.sentence]
    if not sentences:
        return "None yet: that takes completed runs of an arm and of local_only."
    if len(sentences) > 1:
        sentences.append(
            f"- {len(sentences)} arms were tested at 95 % each: about one in twenty such "
            "intervals excludes zero by chance."
        )
    return "\n".join(sentences)


def _accuracy_table(arms: Sequence[ArmResult]) -> str:
    names = [client.client_name for client in arms[0].clients]
    rows = [
        [
            _escape(arm.title),
            str(len(arm.seeds)),
            _share(arm.overall.untrained),
            _share(arm.overall.after_training),
            _share(arm.overall.delivered),
            *(_share(client.delivered) for client in arm.clients),
        ]
        for arm in arms
    ]
    heads = ["Arm", "Seeds", "Untrained", "After training", "Delivered", *map(_escape, names)]
    return _table(heads, rows)


def _difference_table(results: ComparisonResults) -> str:
    rows = [
        [
            _escape(arm.title),
            _difference(arm.over_local_only),
            _difference(arm.gain),
            _difference(arm.over_control),
            arm.verdict.value if arm.verdict else NOTHING,
        ]
        for arm in results.arms
    ]
    best = f"Over the best local arm ({_escape(results.best_local or 'none yet')})"
    heads = ["Arm", "Over local_only", best, "Over its permuted control", "Verdict"]
    return _table(heads, rows)


def _cost_table(arms: Sequence[ArmResult]) -> str:
    rows = [
        [
            _escape(arm.title),
            _number(arm.bytes_up, 0),
            _number(arm.bytes_down, 0),
            _number(arm.seconds_train, 1),
            _fronts(arm),
        ]
        for arm in arms
    ]
    return _table(["Arm", "Bytes up", "Bytes down", "Seconds of training", "Pareto front"], rows)


def _fronts(arm: ArmResult) -> str:
    names = [
        name
        for name, is_on in (("bytes", arm.is_on_bytes_front), ("seconds", arm.is_on_seconds_front))
        if is_on
    ]
    return ", ".join(names) or NOTHING


def _failed(results: ComparisonResults) -> str:
    return "\n".join(
        f"- {_escape(run.arm)}, seed {run.seed}: {run.status.value}. {_escape(run.error or '')}"
        for run in results.runs
        if run.status.is_terminal and run.status.value != "completed"
    )


def _share(value: Spread | None) -> str:
    return _number(value, 3)


def _number(value: Spread | None, digits: int) -> str:
    if value is None:
        return NOTHING
    mean = f"{value.mean:.{digits}f}"
    return mean if value.sd is None else f"{mean} ± {value.sd:.{digits}f}"


def _difference(value: Interval | None) -> str:
    return NOTHING if value is None else str(value)


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _escape(text: str) -> str:
    return _MARKS.sub(r"\\\1", " ".join(text.split()))
