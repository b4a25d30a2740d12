"""Runs one arm of an experiment: what every client reaches, before and after aggregation."""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from backend.contracts.metrics import MetricName
from backend.contracts.strategies import Params
from backend.contracts.training import TrainingConfig
from worker.federated.experiments.config import (
    Arm,
    Experiment,
    FederatedArm,
    LocalArm,
    Setting,
    UntrainedArm,
)
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


def run_arm(
    experiment: Experiment,
    setting: Setting,
    arm: Arm,
    clients: Sequence[SimulatedClient],
    factors: Mapping[str, Tensors],
    seed: int,
) -> list[Outcome]:
    """All clients of one arm with one seed, in the order given.

    Args:
        experiment: rounds and training.
        setting: gives the global rank.
        arm: what to run.
        clients: without anything brought along.
        factors: gauged factors by client id; empty for arms without a gauge.
        seed: of the run.
    """
    members = [replace(client, private=factors.get(client.client_id)) for client in clients]
    match arm:
        case UntrainedArm():
            return [_untrained(client, experiment.training) for client in members]
        case LocalArm():
            return [_alone(experiment, setting, arm, client, seed) for client in members]
        case FederatedArm():
            return _together(experiment, setting, arm.strategy, members, seed)


def _untrained(client: SimulatedClient, training: TrainingConfig) -> Outcome:
    accuracy = client.objective(training).accuracy(client.model, client.data.test)
    return Outcome(client.client_id, accuracy, accuracy, accuracy, None, 0, 0.0)


def _together(
    experiment: Experiment,
    setting: Setting,
    strategy: Params,
    clients: Sequence[SimulatedClient],
    seed: int,
) -> list[Outcome]:
    last_only = experiment.training.model_copy(update={"evaluate_every": experiment.num_rounds})
    result = _simulate(experiment, setting, strategy, last_only, clients, seed)
    first, last = result.rounds[0].metrics, result.rounds[-1].metrics
    return [
        Outcome(
            client_id=client.client_id,
            accuracy_initial=first[client.client_id][MetricName.ACCURACY_BEFORE_TRAINING],
            accuracy_after_local=last[client.client_id][MetricName.ACCURACY_AFTER_TRAINING],
            accuracy_after_aggregation=result.delivered[client.client_id][
                MetricName.ACCURACY_DELIVERED
            ],
            learning_rate=None,
            round_number=experiment.num_rounds,
            bytes_up=last[client.client_id][MetricName.BYTES_UP],
        )
        for client in clients
    ]


def _alone(
    experiment: Experiment, setting: Setting, arm: LocalArm, client: SimulatedClient, seed: int
) -> Outcome:
    """The best (learning rate, round) of one client by validation loss; round 0 is untrained."""
    candidates: list[tuple[float, Outcome]] = []
    for rate in arm.learning_rates:
        strategy, training = arm.strategy, experiment.training
        if "shared_learning_rate" in type(strategy).model_fields:
            strategy = strategy.model_copy(update={"shared_learning_rate": rate})
        else:
            training = training.model_copy(update={"learning_rate": rate})
        result = _simulate(experiment, setting, strategy, training, [client], seed)
        rounds = [stage.metrics[client.client_id] for stage in result.rounds]
        initial = rounds[0][MetricName.ACCURACY_BEFORE_TRAINING]
        points = [(0, rounds[0][MetricName.VALIDATION_LOSS_BEFORE_TRAINING], initial)]
        points += [
            (
                number,
                metrics[MetricName.VALIDATION_LOSS_AFTER_TRAINING],
                metrics[MetricName.ACCURACY_AFTER_TRAINING],
            )
            for number, metrics in enumerate(rounds, start=1)
            if MetricName.ACCURACY_AFTER_TRAINING in metrics
        ]
        for number, loss, accuracy in points:
            reached = Outcome(
                client.client_id, initial, accuracy, accuracy, rate, number, bytes_up=0.0
            )
            candidates.append((loss, reached))
    return min(candidates, key=lambda candidate: candidate[0])[1]


def _simulate(
    experiment: Experiment,
    setting: Setting,
    strategy: Params,
    training: TrainingConfig,
    clients: Sequence[SimulatedClient],
    seed: int,
) -> SimulationResult:
    with tempfile.TemporaryDirectory(prefix="fedbraid-") as folder:
        return simulate(
            strategy,
            clients,
            num_rounds=experiment.num_rounds,
            training=training,
            global_rank=setting.global_rank,
            seed=seed,
            output=Path(folder) if len(clients) > 1 else None,
        )
