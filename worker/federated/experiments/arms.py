"""Runs one arm of an experiment: what every client reaches, before and after aggregation."""

import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from backend.contracts.metrics import MetricName
from backend.contracts.strategies import Params
from backend.contracts.training import TrainingConfig
from worker.federated.experiments.arm_kinds import (
    Arm,
    FederatedArm,
    Federations,
    GaugeSource,
    LocalArm,
    PooledArm,
    UntrainedArm,
)
from worker.federated.experiments.config import Experiment, Setting
from worker.federated.simulation import SimulatedClient, SimulationResult, simulate
from worker.federated.types import Tensors


@dataclass(frozen=True, slots=True)
class Outcome:
    """One client in one arm; accuracies are shares in [0, 1] on the test set."""

    client_id: str
    accuracy_initial: float
    accuracy_after_local: float
    accuracy_after_aggregation: float
    learning_rate: float | None  # the chosen one, in local arms
    round_number: int  # the chosen one in local arms, else the last
    bytes_up: float  # per round
    update_cosine: float | None = None  # of the clients' changes, mean over rounds; federated only


@dataclass(frozen=True, slots=True)
class Point:
    """One client alone, after some round; round 0 is untrained."""

    round_number: int
    validation_loss: float
    accuracy: float


@dataclass(frozen=True, slots=True)
class ArmRunner:
    """The arms of one setting with one seed; what several arms need is computed once.

    Attributes:
        experiment: rounds and training.
        setting: gives the global rank.
        clients: without anything brought along.
        pooled: the same clients, each with the rows of all that have its task.
        seed: of the run.
    """

    experiment: Experiment
    setting: Setting
    clients: Sequence[SimulatedClient]
    pooled: Sequence[SimulatedClient]
    seed: int
    _points: dict[tuple[str, ...], list[Point]] = field(default_factory=dict)

    def run(self, arm: Arm, factors: Mapping[str, Tensors]) -> list[Outcome]:
        """All clients in the order given.

        Args:
            arm: what to run.
            factors: gauged factors by client id; empty for arms without a gauge.
        """
        members = [replace(c, private=factors.get(c.client_id)) for c in self.clients]
        match arm:
            case UntrainedArm():
                return [self._untrained(client) for client in members]
            case LocalArm():
                num_rounds = self.experiment.num_rounds
                return [self._alone(arm, arm.gauge, client, num_rounds) for client in members]
            case PooledArm():
                return self._pooled(arm)
            case FederatedArm():
                groups = grouped(members, arm.federations)
                found = [o for group in groups for o in self._together(arm.strategy, group)]
                by_client = {outcome.client_id: outcome for outcome in found}
                return [by_client[client.client_id] for client in members]

    def _untrained(self, client: SimulatedClient) -> Outcome:
        goal = client.objective(self.experiment.training)
        accuracy = goal.accuracy(client.model, client.data.test)
        return Outcome(client.client_id, accuracy, accuracy, accuracy, None, 0, 0.0)

    def _together(self, strategy: Params, clients: Sequence[SimulatedClient]) -> list[Outcome]:
        num_rounds = self.experiment.num_rounds
        last_only = self.experiment.training.model_copy(update={"evaluate_every": num_rounds})
        with tempfile.TemporaryDirectory(prefix="fedbraid-") as folder:
            result = self._simulate(strategy, last_only, clients, num_rounds, Path(folder))
        first, last = result.rounds[0].metrics, result.rounds[-1].metrics
        cosines = [stage.report.values.get("update_cosine") for stage in result.rounds]
        known = [cosine for cosine in cosines if cosine is not None]
        return [
            Outcome(
                client_id=client.client_id,
                accuracy_initial=first[client.client_id][MetricName.ACCURACY_BEFORE_TRAINING],
                accuracy_after_local=last[client.client_id][MetricName.ACCURACY_AFTER_TRAINING],
                accuracy_after_aggregation=result.delivered[client.client_id][
                    MetricName.ACCURACY_DELIVERED
                ],
                learning_rate=None,
                round_number=num_rounds,
                bytes_up=last[client.client_id][MetricName.BYTES_UP],
                update_cosine=sum(known) / len(known) if known else None,
            )
            for client in clients
        ]

    def _pooled(self, arm: PooledArm) -> list[Outcome]:
        """Clients that have model, rank and rows in common are trained once."""
        outcomes: list[Outcome] = []
        for own, client in zip(self.clients, self.pooled, strict=True):
            done = zip(self.pooled, outcomes, strict=False)  # of those before this one
            outcome = next((found for before, found in done if _are_alike(before, client)), None)
            if outcome is None:
                num_times = len(client.data.train) // len(own.data.train)
                num_rounds = num_times * self.experiment.num_rounds
                outcome = self._alone(arm, "none", client, num_rounds)
            outcomes.append(replace(outcome, client_id=client.client_id))
        return outcomes

    def _alone(
        self,
        arm: LocalArm | PooledArm,
        gauge: GaugeSource,
        client: SimulatedClient,
        num_rounds: int,
    ) -> Outcome:
        """The last round of the only rate, or the (rate, round) of lowest validation loss."""
        by_rate = [
            (rate, self._course(arm.strategy, gauge, rate, client, num_rounds))
            for rate in arm.learning_rates
        ]
        candidates = [(rate, point) for rate, points in by_rate for point in points]
        if isinstance(arm, LocalArm) and arm.chosen_by == "last_round":
            rate, chosen = candidates[-1]
        else:
            rate, chosen = min(candidates, key=lambda candidate: candidate[1].validation_loss)
        start = candidates[0][1].accuracy
        return Outcome(
            client.client_id,
            start,
            chosen.accuracy,
            chosen.accuracy,
            rate,
            chosen.round_number,
            bytes_up=0.0,
        )

    def _course(
        self,
        strategy: Params,
        gauge: GaugeSource,
        rate: float,
        client: SimulatedClient,
        num_rounds: int,
    ) -> list[Point]:
        """How one client alone fares with one learning rate: where it is measured, and at the end.

        Without the end, a course that is measured too rarely would pass off its start as its last.
        """
        training = self.experiment.training
        every = math.gcd(training.evaluate_every, num_rounds)
        training = training.model_copy(update={"evaluate_every": every})
        if "shared_learning_rate" in type(strategy).model_fields:
            strategy = strategy.model_copy(update={"shared_learning_rate": rate})
        else:
            training = training.model_copy(update={"learning_rate": rate})
        key = (
            client.client_id,
            str(len(client.data.train)),
            strategy.model_dump_json(),
            training.model_dump_json(),
            gauge,
        )
        if key not in self._points:
            result = self._simulate(strategy, training, [client], num_rounds)
            self._points[key] = _points(result, client.client_id)
        return self._points[key]

    def _simulate(
        self,
        strategy: Params,
        training: TrainingConfig,
        clients: Sequence[SimulatedClient],
        num_rounds: int,
        output: Path | None = None,
    ) -> SimulationResult:
        return simulate(
            strategy,
            clients,
            num_rounds=num_rounds,
            training=training,
            global_rank=self.setting.global_rank,
            seed=self.seed,
            output=output,
        )


def grouped(
    clients: Sequence[SimulatedClient], federations: Federations
) -> list[list[SimulatedClient]]:
    """Clients by the federation that they are in; clients of one base model share its object."""
    match federations:
        case "one":
            return [list(clients)]
        case "same_model":
            return _by(clients, lambda client: id(client.model))
        case "same_family":
            return _by(clients, lambda client: client.model.config.model_type)
        case "different_models":
            by_model = _by(clients, lambda client: id(client.model))
            return [
                [same[number] for same in by_model if number < len(same)]
                for number in range(max(map(len, by_model)))
            ]


def _are_alike(one: SimulatedClient, two: SimulatedClient) -> bool:
    """Whether LoRA would find the same but for its random start."""
    same = one.model is two.model and one.lora_rank == two.lora_rank
    return same and one.data == two.data


def _by(
    clients: Sequence[SimulatedClient], key: Callable[[SimulatedClient], object]
) -> list[list[SimulatedClient]]:
    """Clients with an equal key, in the order of its first client."""
    found: dict[object, list[SimulatedClient]] = {}
    for client in clients:
        found.setdefault(key(client), []).append(client)
    return list(found.values())


def _points(result: SimulationResult, client_id: str) -> list[Point]:
    rounds = [stage.metrics[client_id] for stage in result.rounds]
    start = Point(
        0,
        rounds[0][MetricName.VALIDATION_LOSS_BEFORE_TRAINING],
        rounds[0][MetricName.ACCURACY_BEFORE_TRAINING],
    )
    measured = [
        Point(
            number,
            metrics[MetricName.VALIDATION_LOSS_AFTER_TRAINING],
            metrics[MetricName.ACCURACY_AFTER_TRAINING],
        )
        for number, metrics in enumerate(rounds, start=1)
        if MetricName.ACCURACY_AFTER_TRAINING in metrics
    ]
    return [start, *measured]
