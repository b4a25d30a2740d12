"""FedIT: federated averaging of LoRA, factor by factor.

Every round each client starts from the common factors, trains both, and sends both; the server
averages A and B apart, weighted by numbers of examples. The mean of the factors is not the factor
of the mean, sum_i p_i B_i A_i != B' A': how far the two are apart is in every round's report
(`cross_term_error`), and is what FFA-LoRA, FedEx-LoRA and FLoRA set out to remove.

Reference: Zhang et al., Towards Building the Federated GPT, arXiv 2305.05644. Deviation: B is
averaged with each client's scale in it, so that clients of different `lora_alpha` can take part.

| Symbol | Shape | |
|---|---|---|
| A_i, B_i | (r, in), (out, r) | factors of client i; `lora_client` for storage and scale |
| p_i | | examples of client i over those of all clients that sent |

Leaves the client: A and B, L r sum_k (in_k + out_k) values of fp32 in each direction. Never leaves:
data, base model, a head, AdamW's moments (kept: a round goes on from nearby factors).
"""

from collections.abc import Iterable
from pathlib import Path

import torch

from backend.contracts.metrics import MetricName
from backend.contracts.params.lora import FedItParams
from worker.federated.client_round import Stopwatch, below, relative_change
from worker.federated.compatibility import refuse_unequal
from worker.federated.low_rank import difference, norm, products_of
from worker.federated.strategies.lora_client import (
    deliver_lora,
    load_received,
    lora_update,
    train_lora,
)
from worker.federated.strategies.lora_exchange import (
    ProductSum,
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
    Tensors,
)

MEASURED_LAYERS = 4
"""The cross-term error is taken over this many layers, spread evenly over the depth.

It needs the factors of all clients side by side; all layers would cost the server N times the
memory of the average itself.
"""


class FedIt:
    """See the module's text."""

    def __init__(self, params: FedItParams) -> None:
        self.params = params

    def check(self, federation: FederationSpec) -> list[Refusal]:
        """Refuses clients of another rank, depth or width."""
        return refuse_unequal(self.params, federation)

    def init_state(self, federation: FederationSpec, seed: int) -> ServerState:
        """One random A and a zero B for everybody."""
        first = federation.clients[0]
        return ServerState(start_factors(first, first.lora_rank, seed), {"seed": seed})

    def configure_round(
        self, state: ServerState, federation: FederationSpec, round_number: int, *, deliver: bool
    ) -> dict[str, ClientPlan]:
        """The common factors for every client."""
        return make_plans(
            state, federation, round_number, deliver=deliver, tensors=lambda client: state.tensors
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
        """A <- sum_i p_i A_i and B <- sum_i p_i B_i, each for itself."""
        mean, products = WeightedMean(), ProductSum()
        for _, update in accepted(updates, federation, expected_factors):
            mean.add(update.num_examples, update.shared)
            products.add(update.num_examples, _some_layers(update.shared))
        factors, exact = mean.result(), products.result()
        size = norm(exact.values())
        missed = norm(difference(exact, products_of(_some_layers(factors))).values())
        values = {
            "relative_change": relative_change(state.tensors, factors),
            "cross_term_error": missed / size if size > 0 else 0.0,
        }
        return ServerState(factors, state.meta), AggregationReport(mean.num_clients, values)


def _some_layers(stacked: Tensors) -> Tensors:
    """Evenly spread layers, the first and the last among them; all where there are few."""
    num_layers = next(iter(stacked.values())).shape[0]
    chosen = torch.linspace(0, num_layers - 1, min(MEASURED_LAYERS, num_layers)).round().long()
    return {name: tensor[chosen] for name, tensor in stacked.items()}
