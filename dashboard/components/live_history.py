"""All that a live page has seen of one run, and the series its charts need."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from uuid import UUID

from backend.contracts.enums import RoundKind
from backend.contracts.metrics import MetricName
from backend.contracts.refusals import Refusal
from backend.contracts.runs import ClientUpdate, Event, LiveRun, MetricPoint, Round, Run

ByRound = dict[int, float]
"""One value per round number."""


@dataclass
class LiveHistory:
    """Grows with every answer of `GET /runs/{id}/live`; absorbing one twice changes nothing."""

    run: Run
    cursor: int = 0
    rounds: dict[int, Round] = field(default_factory=dict)
    metrics: dict[int, MetricPoint] = field(default_factory=dict)
    events: dict[int, Event] = field(default_factory=dict)
    refusals: list[Refusal] = field(default_factory=list)

    def absorb(self, live: LiveRun) -> None:
        """Add what is new."""
        self.run = live.run
        self.cursor = max(self.cursor, live.cursor)
        self.rounds |= {item.round_number: item for item in live.rounds}
        self.metrics |= {point.id: point for point in live.metrics}
        self.events |= {event.id: event for event in live.events}
        self.refusals = live.refusals

    @property
    def current_round(self) -> Round | None:
        """The newest round; None before the first."""
        return self.rounds[max(self.rounds)] if self.rounds else None

    def client_names(self) -> dict[UUID, str]:
        """The clients that took part so far."""
        return {
            update.client_id: update.client_name
            for item in self.rounds.values()
            for update in item.client_updates
        }

    def train_rounds(self) -> list[int]:
        """Numbers of the rounds that train, in order."""
        return sorted(n for n, item in self.rounds.items() if item.kind is RoundKind.TRAIN)

    def per_round(self, name: MetricName) -> dict[UUID, ByRound]:
        """A metric per client and round; the newest value wins where an attempt was repeated."""
        return per_round(list(self.metrics.values()), name)

    def totals(self, name: MetricName) -> ByRound:
        """The sum of a metric over all clients, per round."""
        totals: ByRound = {}
        for values in self.per_round(name).values():
            for number, value in values.items():
                totals[number] = totals.get(number, 0.0) + value
        return totals

    def loss_by_step(self) -> dict[UUID, list[tuple[int, float]]]:
        """Training loss per client over `(step since the start of the run, nats per token)`.

        Rounds are put end to end: a client's first step of round 2 follows its last of round 1.
        Not every step is reported; where the run counts epochs, so that the number of steps is the
        client's own, the last reported step of a round ends it.
        """
        seen: dict[UUID, dict[int, dict[int, float]]] = {}
        for _, point in sorted(self.metrics.items()):
            if (
                point.scope == "progress"
                and point.name is MetricName.TRAIN_LOSS
                and point.client_id is not None
                and point.step is not None
            ):
                steps = seen.setdefault(point.client_id, {}).setdefault(point.round_number, {})
                steps[point.step] = point.value
        length = self.run.training.local_steps
        return {client: _end_to_end(rounds, length) for client, rounds in seen.items()}

    def loss_by_round(self) -> dict[UUID, list[tuple[int, float]]]:
        """Training loss per client over `(round, mean over the round in nats per token)`."""
        losses = self.per_round(MetricName.TRAIN_LOSS)
        return {client: sorted(rounds.items()) for client, rounds in losses.items()}

    def delivered_updates(self) -> list[ClientUpdate]:
        """Every client's part of the deliver round, once there is one."""
        return [
            update
            for item in self.rounds.values()
            if item.kind is RoundKind.DELIVER
            for update in item.client_updates
        ]


def from_round_1(values: Mapping[UUID, ByRound]) -> dict[UUID, ByRound]:
    """The same without the round before the first, in which models agree on codes."""
    return {
        client: {number: value for number, value in rounds.items() if number > 0}
        for client, rounds in values.items()
    }


def per_round(points: list[MetricPoint], name: MetricName) -> dict[UUID, ByRound]:
    """A metric per client and round, from points in any order; the newest id wins."""
    values: dict[UUID, ByRound] = {}
    for point in sorted(points, key=lambda item: item.id):
        if point.scope == "round" and point.name is name and point.client_id is not None:
            values.setdefault(point.client_id, {})[point.round_number] = point.value
    return values


def newest(values: dict[UUID, ByRound]) -> dict[UUID, float]:
    """Each client's value of its newest round."""
    return {client: rounds[max(rounds)] for client, rounds in values.items() if rounds}


def mean(values: Mapping[UUID, float]) -> float | None:
    """The mean over clients, each counted once; None without clients."""
    return sum(values.values()) / len(values) if values else None


def running_total(values: ByRound) -> ByRound:
    """The sum of this and all earlier rounds, per round."""
    total = 0.0
    totals: ByRound = {}
    for number in sorted(values):
        total += values[number]
        totals[number] = total
    return totals


def _end_to_end(rounds: dict[int, dict[int, float]], length: int | None) -> list[tuple[int, float]]:
    """Steps of rounds of `length` steps each as one line; None: it ends with the last step."""
    line: list[tuple[int, float]] = []
    offset = 0
    for number in sorted(rounds):
        steps = rounds[number]
        if length is not None:
            offset = (number - 1) * length
        line += [(offset + step, steps[step]) for step in sorted(steps)]
        offset += max(steps)
    return line
