"""What a demo reports: figures per client, all taken from the metrics of its two runs."""

import math
from collections.abc import Iterable
from pathlib import Path
from statistics import fmean
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


class DemoReport(BaseModel):
    """The whole demo; `seconds_training` is the wall-clock time of the two runs."""

    clients: list[ClientFigures]
    rounds: int
    seconds_total: float
    seconds_training: float
    dashboard_url: str

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
    client: Client, baseline: RunMetrics, shared: RunMetrics, strategy: StrategyName, rounds: int
) -> ClientFigures:
    """One client's row of the report.

    Args:
        client: whose.
        baseline: of the `local_only` run.
        shared: of the run of `strategy`.
        strategy: what was compared.
        rounds: training rounds of each run.
    """
    return ClientFigures(
        name=client.name,
        family=client.architecture.family,
        layers=client.architecture.num_layers,
        hidden=client.architecture.hidden_size,
        rank=client.lora_rank,
        task=client.task,
        accuracy={
            "initial": baseline.first(client, MetricName.ACCURACY_BEFORE_TRAINING),
            StrategyName.LOCAL_ONLY.value: baseline.last(client, MetricName.ACCURACY_DELIVERED),
            strategy.value: shared.last(client, MetricName.ACCURACY_DELIVERED),
        },
        sparsity=shared.last(client, MetricName.SPARSITY),
        bytes_up_per_round=round(shared.mean(client, MetricName.BYTES_UP, rounds)),
        bytes_down_per_round=round(shared.mean(client, MetricName.BYTES_DOWN, rounds)),
    )


def verdict(clients: list[ClientFigures], strategy: StrategyName, num_test: list[int]) -> str:
    """One honest sentence: did sharing pay in the mean, and is that more than chance?

    Args:
        clients: the figures.
        strategy: what was compared with `local_only`.
        num_test: test examples of each client; decides how large chance is.
    """
    alone = [client.accuracy[StrategyName.LOCAL_ONLY] for client in clients]
    together = [client.accuracy[strategy] for client in clients]
    difference = fmean(together) - fmean(alone)
    # Standard error of a difference of means of shares. The two runs are tested on the same
    # examples, which makes the true one smaller.
    variance = math.fsum(
        (a * (1 - a) + b * (1 - b)) / n for a, b, n in zip(alone, together, num_test, strict=True)
    )
    error = math.sqrt(variance) / len(clients)
    means = f"{strategy} {fmean(together):.1%}, local_only {fmean(alone):.1%}"
    if abs(difference) < 2 * error:
        return (
            f"Mean accuracy here: {means}. The difference of {100 * difference:+.1f} points is "
            f"within chance (about {200 * error:.0f} points with so few test examples, one seed)."
        )
    won = "beat" if difference > 0 else "did not beat"
    return (
        f"Mean accuracy here: {means}: {strategy} {won} local_only by "
        f"{100 * difference:+.1f} points (one seed, small test sets)."
    )
