"""FedIT whose server keeps going: the worked example of docs/how-to/add-a-strategy.md.

The mean change of a round is added to a velocity, and the velocity to the common factors:
v <- momentum v + (mean - common), common <- common + v. With momentum 0 this is FedIT.
Reference: Hsu et al., arXiv 1909.06335 (FedAvgM), here on LoRA factors.

Leaves the client: A and B. Never leaves: data, base model, a head, AdamW's moments.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from pydantic import Field

from backend.contracts.metrics import MetricName
from backend.contracts.params.base import GroupableParams
from worker.federated.client_round import Stopwatch, below, relative_change, take
from worker.federated.compatibility import refuse_unequal
from worker.federated.strategies.lora_client import (
    deliver_lora,
    load_received,
    lora_update,
    train_lora,
)
from worker.federated.strategies.lora_exchange import (
    WeightedMean,
    accepted,
    expected_factors,
    make_plans,
    start_factors,
)
from worker.federated.types import (
    AggregationReport,
    ClientPlan,
    ClientUpdate,
    FederationSpec,
    LocalClient,
    Metrics,
    Refusal,
    ServerState,
)


class ServerMomentumParams(GroupableParams):
    """Server momentum: averaged LoRA factors that keep moving the way they went."""

    name: Literal["server_momentum"] = "server_momentum"
    momentum: float = Field(
        0.5,
        ge=0,
        lt=1,
        title="Momentum",
        description="Share of the last change that a round adds again. 0: FedIT; with few local "
        "steps try 0.5 to 0.9.",
    )


class ServerMomentum:
    """See the module's text."""

    def __init__(self, params: ServerMomentumParams) -> None:
        self.params = params

    def check(self, federation: FederationSpec) -> list[Refusal]:
        """Refuses clients of another rank, depth or width."""
        return refuse_unequal(self.params, federation)

    def init_state(self, federation: FederationSpec, seed: int) -> ServerState:
        """One random A and a zero B for everybody; no velocity yet."""
        first = federation.clients[0]
        factors = start_factors(first, first.lora_rank, seed)
        return ServerState(below("common", factors), {"seed": seed})

    def configure_round(
        self, state: ServerState, federation: FederationSpec, round_number: int, *, deliver: bool
    ) -> dict[str, ClientPlan]:
        """The common factors for every client."""
        common = take("common", state.tensors)
        return make_plans(
            state, federation, round_number, deliver=deliver, tensors=lambda client: common
        )

    def train_client(self, plan: ClientPlan, client: LocalClient) -> ClientUpdate:
        """Trains A and B from the common factors on, and sends both."""
        watch = Stopwatch()
        with watch.measure(MetricName.SECONDS_LOAD):
            lora = load_received(plan, client)
        trained = train_lora(plan, client, lora, watch)
        private = below("moments", trained.moments)
        return lora_update(plan, client, lora, trained, shared=lora.stacked(), private=private)

    def deliver_client(self, plan: ClientPlan, client: LocalClient, folder: Path) -> Metrics:
        """Writes the common factors as the client's adapter."""
        return deliver_lora(client, load_received(plan, client), folder)

    def aggregate(
        self, state: ServerState, federation: FederationSpec, updates: Iterable[ClientUpdate]
    ) -> tuple[ServerState, AggregationReport]:
        """The mean change goes into the velocity, and the velocity into the common factors."""
        mean = WeightedMean()
        for _, update in accepted(updates, federation, expected_factors):
            mean.add(update.num_examples, update.shared)
        common, last = take("common", state.tensors), take("velocity", state.tensors)
        velocity = {
            name: tensor - common[name] + self.params.momentum * last.get(name, 0)
            for name, tensor in mean.result().items()
        }
        moved = {name: common[name] + velocity[name] for name in common}
        tensors = {**below("common", moved), **below("velocity", velocity)}
        values = {"relative_change": relative_change(common, moved)}
        return ServerState(tensors, state.meta), AggregationReport(mean.num_clients, values)
