"""What a demo reports: figures per client, all taken from the metrics of its runs."""

import math
from collections.abc import Iterable
from pathlib import Path
from statistics import fmean
from typing import Literal
from uuid import UUID

from pydantic import BaseModel

from backend.contracts.clients import Client
from backend.contracts.enums import StrategyName, TaskKind
from backend.contracts.metrics import MetricName
from backend.contracts.runs import MetricPoint
from backend.local.errors import DemoError


class ClientFigures(BaseModel):
    """One client's outcome.

    `accuracy` has shares in [0, 1]: `initial`, and one entry per strategy; `sparsity` is the share
    of zeros in the shared matrices; bytes are means over the training rounds.
    `accuracy_same_shape_alone` is that of the control, the strategy's own adapter trained as long
    without sharing; None for strategies that have no such control.
    """

    name: str
    family: str
    layers: int
    hidden: int
    rank: int
    task: TaskKind
    accuracy: dict[str, float]
    sparsity: float
    bytes_up_per_round: int
    bytes_down_per_round: int
    accuracy_same_shape_alone: float | None = None


class Gain(BaseModel):
    """The strategy's mean accuracy minus that of an arm without sharing.

    Both are shares in [0, 1]. `standard_error` is owed to the finite test sets alone: it knows
    nothing of other seeds. `exceeds_chance`: the difference is, up or down, at least two of it.
    """

    over: Literal["local_only", "same_shape_alone"]
    difference: float
    standard_error: float
    exceeds_chance: bool


class DemoReport(BaseModel):
    """The whole demo; `seconds_training` is the wall-clock time of its runs."""

    clients: list[ClientFigures]
    rounds: int
    seconds_total: float
    seconds_training: float
    dashboard_url: str
    gains: list[Gain] = []

    def write(self, path: Path) -> None:
        """Writes the report as JSON, whole or not at all."""
        part = path.with_name(path.name + ".part")
        part.write_text(self.model_dump_json(indent=2) + "\n", encoding="utf-8")
        part.replace(path)


class RunMetrics:
    """The per-round values of a run, by client and name."""

    def __init__(self, points: Iterable[MetricPoint]):
        self._values: dict[tuple[UUID | None, MetricName], dict[int, float]] = {}
        for point in points:
            if point.scope == "round":
                by_round = self._values.setdefault((point.client_id, point.name), {})
                by_round[point.round_number] = point.value

    def first(self, client: Client, name: MetricName) -> float:
        """The value of the first round that has one."""
        by_round = self._of(client, name)
        return by_round[min(by_round)]

    def last(self, client: Client, name: MetricName) -> float:
        """The value of the last round that has one."""
        by_round = self._of(client, name)
        return by_round[max(by_round)]

    def total(self, client: Client, name: MetricName) -> float:
        """The sum over all rounds."""
        return math.fsum(self._of(client, name).values())

    def mean(self, client: Client, name: MetricName, num_rounds: int) -> float:
        """The mean over the rounds 1 to `num_rounds`."""
        by_round = self._of(client, name)
        return fmean(value for number, value in by_round.items() if number <= num_rounds)

    def _of(self, client: Client, name: MetricName) -> dict[int, float]:
        by_round = self._values.get((client.id, name))
        if not by_round:
            raise DemoError(f"the run has no {name} of {client.name}")
        return by_round


def client_figures(
    client: Client,
    baseline: RunMetrics,
    shared: RunMetrics,
    strategy: StrategyName,
    rounds: int,
    control: RunMetrics | None = None,
) -> ClientFigures:
    """One client's row of the report.

    Args:
        client: whose.
        baseline: of the `local_only` run.
        shared: of the run of `strategy`.
        strategy: what was compared.
        rounds: training rounds of each run.
        control: of the run of the same shape alone, if there was one.
    """
    delivered = MetricName.ACCURACY_DELIVERED
    return ClientFigures(
        name=client.name,
        family=client.architecture.family,
        layers=client.architecture.num_layers,
        hidden=client.architecture.hidden_size,
        rank=client.lora_rank,
        task=client.task,
        accuracy={
            "initial": baseline.first(client, MetricName.ACCURACY_BEFORE_TRAINING),
            StrategyName.LOCAL_ONLY.value: baseline.last(client, delivered),
            strategy.value: shared.last(client, delivered),
        },
        sparsity=shared.last(client, MetricName.SPARSITY),
        bytes_up_per_round=round(shared.mean(client, MetricName.BYTES_UP, rounds)),
        bytes_down_per_round=round(shared.mean(client, MetricName.BYTES_DOWN, rounds)),
        accuracy_same_shape_alone=None if control is None else control.last(client, delivered),
    )


def gains(clients: list[ClientFigures], strategy: StrategyName, num_test: list[int]) -> list[Gain]:
    """What sharing was worth over each arm without it.

    Args:
        clients: the figures.
        strategy: what was compared.
        num_test: test examples of each client; decides how large chance is.

    Returns:
        Over `local_only`, and over the same shape alone where that was run.
    """
    together = [client.accuracy[strategy] for client in clients]
    local_only = [client.accuracy[StrategyName.LOCAL_ONLY] for client in clients]
    found = [_gain("local_only", local_only, together, num_test)]
    same_shape = _same_shape_alone(clients)
    if same_shape:
        found.append(_gain("same_shape_alone", same_shape, together, num_test))
    return found


def verdict(clients: list[ClientFigures], strategy: StrategyName, num_test: list[int]) -> str:
    """Honest sentences: did sharing pay in the mean, is that more than chance, and is it sharing?

    Args:
        clients: the figures.
        strategy: what was compared with `local_only`.
        num_test: test examples of each client; decides how large chance is.
    """
    over_local, *over_same_shape = gains(clients, strategy, num_test)
    together = fmean(client.accuracy[strategy] for client in clients)
    alone = fmean(client.accuracy[StrategyName.LOCAL_ONLY] for client in clients)
    said = f"Mean accuracy here: {strategy} {together:.1%}, local_only {alone:.1%}"
    said += _over_local_only(strategy, over_local)
    if not over_same_shape:
        return said
    same_shape = fmean(_same_shape_alone(clients))
    return " ".join(
        (
            said,
            f"The same shape trained alone: {same_shape:.1%}."
            + _over_same_shape(over_same_shape[0]),
            _conclusion(strategy, [over_local, *over_same_shape]),
        )
    )


def _over_local_only(strategy: StrategyName, gain: Gain) -> str:
    points = f"{100 * gain.difference:+.1f} points"
    if not gain.exceeds_chance:
        return (
            f". The difference of {points} is within chance (about "
            f"{200 * gain.standard_error:.0f} points with so few test examples, one seed)."
        )
    won = "beat" if gain.difference > 0 else "did not beat"
    return f": {strategy} {won} local_only by {points} (one seed, small test sets)."


def _over_same_shape(gain: Gain) -> str:
    chance = f"chance is about {200 * gain.standard_error:.0f}"
    beyond = "more than" if gain.exceeds_chance else "within"
    return f" Sharing was worth {100 * gain.difference:+.1f} points, {beyond} chance ({chance})."


def _conclusion(strategy: StrategyName, found: list[Gain]) -> str:
    rule = "two standard errors of the test sets"
    if all(gain.exceeds_chance and gain.difference > 0 for gain in found):
        return f"Both gains exceed {rule}: {strategy} is ahead because of sharing."
    return (
        f"Only gains over both that exceed {rule} would show that sharing puts {strategy} ahead: "
        "this run does not."
    )


def _same_shape_alone(clients: list[ClientFigures]) -> list[float]:
    """The control's accuracies; empty if it was not run."""
    found = [client.accuracy_same_shape_alone for client in clients]
    return [accuracy for accuracy in found if accuracy is not None]


def _gain(
    over: Literal["local_only", "same_shape_alone"],
    alone: list[float],
    together: list[float],
    num_test: list[int],
) -> Gain:
    difference = fmean(together) - fmean(alone)
    # Standard error of a difference of means of shares. The two runs are tested on the same
    # examples, which makes the true one smaller.
    variance = math.fsum(
        (a * (1 - a) + b * (1 - b)) / n for a, b, n in zip(alone, together, num_test, strict=True)
    )
    error = math.sqrt(variance) / len(together)
    return Gain(
        over=over,
        difference=difference,
        standard_error=error,
        exceeds_chance=difference != 0 and abs(difference) >= 2 * error,
    )
