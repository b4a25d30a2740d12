"""Words and colours for the closed vocabularies."""

from typing import Literal

from backend.contracts.datasets import BuiltinDataset, DatasetRef
from backend.contracts.enums import EventKind, Execution, RunStatus, TaskKind, UpdateStatus
from backend.contracts.runs import Run
from backend.contracts.strategies import StrategyInfo, title_of

BadgeColour = Literal["gray", "orange", "blue", "green", "red"]

RUN_BADGES: dict[RunStatus, tuple[BadgeColour, str]] = {
    RunStatus.CREATED: ("gray", ":material/draft:"),
    RunStatus.QUEUED: ("orange", ":material/hourglass_top:"),
    RunStatus.RUNNING: ("blue", ":material/play_circle:"),
    RunStatus.PAUSED: ("orange", ":material/pause_circle:"),
    RunStatus.COMPLETED: ("green", ":material/check_circle:"),
    RunStatus.FAILED: ("red", ":material/error:"),
    RunStatus.CANCELLED: ("gray", ":material/cancel:"),
}

UPDATE_WORDS: dict[UpdateStatus, str] = {
    UpdateStatus.PENDING: "waiting",
    UpdateStatus.TRAINING: "working",
    UpdateStatus.ACCEPTED: "done",
    UpdateStatus.FAILED: "failed",
    UpdateStatus.CANCELLED: "cancelled",
    UpdateStatus.DROPPED: "too late",
    UpdateStatus.REFUSED: "refused",
    UpdateStatus.DECLINED: "does not take part",
}

TASK_WORDS: dict[TaskKind, str] = {
    TaskKind.FILL_IN: "fill in a number",
    TaskKind.CHOICE: "multiple choice",
    TaskKind.PROGRAM: "write a program",
    TaskKind.CLASSIFICATION: "classification",
    TaskKind.IMAGE_CLASSIFICATION: "classification of pictures",
}

EXECUTION_WORDS: dict[Execution, str] = {
    Execution.MANAGED: "managed (trains on the platform)",
    Execution.REMOTE: "remote (trains on its own premises)",
}

EVENT_MARKS: dict[EventKind, str] = {
    EventKind.RUN_FAILED: "✖",
    EventKind.ATTEMPT_FAILED: "▲",
    EventKind.ATTEMPT_EXPIRED: "▲",
    EventKind.UPDATE_REFUSED: "▲",
    EventKind.UPDATE_LATE: "▲",
    EventKind.CLIENT_REFUSED: "▲",
    EventKind.CLIENT_LEFT_OUT: "▲",
    EventKind.DEADLINE_PASSED: "▲",
    EventKind.RUN_COMPLETED: "✔",
    EventKind.ADAPTER_READY: "⬇",
}


def run_title(run: Run) -> str:
    """A run in a few words, such as `H2Tune, seed 0, 5 rounds`."""
    rounds = "1 round" if run.num_rounds == 1 else f"{run.num_rounds} rounds"
    return f"{title_of(run.strategy)}, seed {run.seed}, {rounds}"


def round_text(run: Run) -> str:
    """Where a run stands, such as `round 3 of 5`."""
    if run.status is RunStatus.COMPLETED:
        if run.stopped_after is not None:
            return f"{run.stopped_after} of {run.num_rounds} rounds, stopped early"
        return f"all {run.num_rounds} rounds" if run.num_rounds > 1 else "1 round"
    if run.round_number == 0:
        if run.started_at is None:
            return "not begun"
        return "before round 1" if run.status.is_terminal else "agreeing on common codes"
    if run.round_number > (run.stopped_after or run.num_rounds):
        return "delivering adapters"
    return f"round {run.round_number} of {run.num_rounds}"


def queue_text(run: Run) -> str:
    """Where a run that waits stands in its queue; nothing for others."""
    if run.queue_position is None:
        return ""
    if run.status is RunStatus.QUEUED:
        return f"Number {run.queue_position} of its comparison's runs that wait for their turn."
    return f"Number {run.queue_position} in the queue for a worker; federations take turns."


def dataset_text(dataset: DatasetRef | None) -> str:
    """Where the rows come from."""
    if dataset is None:
        return "none yet"
    if isinstance(dataset, BuiltinDataset):
        return f"built-in {dataset.task.value.replace('_', ' ')}, seed {dataset.seed}"
    return f"uploaded ({dataset.sha256[:8]}…)"


def split_text(dataset: DatasetRef | None) -> str:
    """Rows for training, validation and test."""
    if dataset is None:
        return "–"
    return f"{dataset.num_train:,} / {dataset.num_validation:,} / {dataset.num_test:,}"


def strategy_caption(info: StrategyInfo) -> str:
    """What a strategy is and what leaves a client."""
    reference = f" {info.reference}." if info.reference else ""
    return f"{info.summary}{reference} What leaves a client: {info.shares}"
