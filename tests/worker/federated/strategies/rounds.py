"""One round of a strategy, step by step, as the platform and the simulation run it."""

import copy
from collections.abc import Sequence
from typing import Any

from backend.contracts.training import TrainingConfig
from worker.federated.simulation import SimulatedClient
from worker.federated.strategy import Strategy
from worker.federated.types import (
    ClientPlan,
    ClientUpdate,
    FederationSpec,
    LocalClient,
    ServerState,
    Tensors,
)


def training(**changes: Any) -> TrainingConfig:
    values = {"local_steps": 4, "batch_size": 4, "learning_rate": 1e-2, "max_length": 64}
    return TrainingConfig(**{**values, **changes})


def federation_of(clients: Sequence[SimulatedClient], global_rank: int = 8) -> FederationSpec:
    members = sorted(clients, key=lambda client: client.client_id)
    return FederationSpec(global_rank, tuple(client.spec() for client in members))


def at_work(
    client: SimulatedClient, config: TrainingConfig, private: Tensors | None = None
) -> LocalClient:
    model = copy.deepcopy(client.model)
    return LocalClient(
        spec=client.spec(),
        model=model,
        objective=client.objective(config, model),
        data=client.data,
        training=config,
        private=private,
    )


def plans_of(
    strategy: Strategy, state: ServerState, clients: Sequence[SimulatedClient], number: int
) -> dict[str, ClientPlan]:
    return strategy.configure_round(state, federation_of(clients), number, deliver=False)


def run_round(
    strategy: Strategy,
    state: ServerState,
    clients: Sequence[SimulatedClient],
    number: int,
    config: TrainingConfig,
    private: dict[str, Tensors] | None = None,
) -> list[ClientUpdate]:
    """Every client's update of one round; `private` is read, not changed."""
    plans = plans_of(strategy, state, clients, number)
    return [
        strategy.train_client(
            plans[client.client_id],
            at_work(client, config, (private or {}).get(client.client_id)),
        )
        for client in clients
    ]
