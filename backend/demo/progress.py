"""The live state of a run in the terminal: a table that changes, or lines where none can."""

from typing import Protocol
from uuid import UUID

from rich.console import Console
from rich.live import Live
from rich.table import Table

from backend.contracts.enums import RoundKind
from backend.contracts.metrics import MetricName
from backend.contracts.runs import ClientUpdate, LiveRun, Round

_ACCURACIES = {
    MetricName.ACCURACY_BEFORE_TRAINING: "before training",
    MetricName.ACCURACY_AFTER_TRAINING: "after training",
    MetricName.ACCURACY_DELIVERED: "delivered",
}
_BAR_WIDTH = 20


class Progress(Protocol):
    """Shows what is new."""

    def show(self, live: LiveRun) -> None:
        """Takes the answer of a poll."""

    def close(self) -> None:
        """Leaves the last state on the screen."""


def open_progress(console: Console, title: str, names: dict[UUID, str]) -> Progress:
    """The display that suits the console.

    Args:
        console: where to.
        title: of the run.
        names: of the clients.
    """
    return _Table(console, title) if console.is_terminal else _Lines(console, title, names)


class _Table:
    def __init__(self, console: Console, title: str):
        self._title = title
        self._accuracy: dict[UUID | None, float] = {}
        # Drawn by us: a thread of its own would be one too many for the child processes.
        self._live = Live(console=console, auto_refresh=False)
        self._live.start()

    def show(self, live: LiveRun) -> None:
        for point in live.metrics:
            if point.scope == "round" and point.name in _ACCURACIES:
                self._accuracy[point.client_id] = point.value
        if live.rounds:
            self._live.update(self._draw(live, live.rounds[-1]), refresh=True)

    def close(self) -> None:
        self._live.stop()

    def _draw(self, live: LiveRun, current: Round) -> Table:
        title = f"{self._title}: {_round_name(live, current)}"
        table = Table("client", "now", "steps", "accuracy", title=title, title_justify="left")
        for update in current.client_updates:
            accuracy = self._accuracy.get(update.client_id)
            table.add_row(
                update.client_name,
                update.stage or update.status.value,
                _bar(update),
                "" if accuracy is None else f"{accuracy:.1%}",
            )
        return table


class _Lines:
    def __init__(self, console: Console, title: str, names: dict[UUID, str]):
        self._console = console
        self._title = title
        self._names = names

    def show(self, live: LiveRun) -> None:
        for point in live.metrics:
            if point.scope == "round" and point.name in _ACCURACIES and point.client_id:
                self._console.print(
                    f"{self._title}: round {point.round_number}, {self._names[point.client_id]}: "
                    f"accuracy {_ACCURACIES[point.name]} {point.value:.1%}",
                    soft_wrap=True,
                )

    def close(self) -> None:
        """Nothing to leave: every line is there already."""


def _round_name(live: LiveRun, current: Round) -> str:
    if current.kind is RoundKind.DELIVER:
        return "delivering"
    if current.kind is RoundKind.GAUGE:
        return "agreeing on common codes"
    return f"round {current.round_number} of {live.run.num_rounds}"


def _bar(update: ClientUpdate) -> str:
    if not update.num_steps:
        return ""
    done = round(_BAR_WIDTH * update.step / update.num_steps)
    return f"{'━' * done}{'╌' * (_BAR_WIDTH - done)} {update.step}/{update.num_steps}"
