"""Fed-PLoRA: LoRA of rank R as R parallel pairs of rank one; every client trains some of them.

All clients receive all R pairs. In each round a client of rank r_i picks r_i of them at random,
trains those, and adds the others to its frozen weights, so that everybody trains around the same
function whatever it can afford. The server averages each pair over the clients that trained it.

Reference: Fed-PLoRA, ICLR 2026 (parallel one-rank adaptation for heterogeneous ranks); known to us
from a summary, so the following is ours: a client makes one choice for all layers of a round,
drawn from run, client and round, so that the server knows it; pairs that nobody picked stay as
they are; weights are numbers of examples; B is averaged with each client's scale.

| Symbol | Shape | |
|---|---|---|
| R | | largest rank among the clients |
| A, B | (R, in), (out, R) | all pairs: row and column kappa belong together |

Leaves the client: its pairs, L r_i sum_k (in_k + out_k) values of fp32. Arrives: all pairs, L R
sum_k (in_k + out_k). Never leaves: data, base model, a head, AdamW's moments (of the head only: in
the next round other pairs stand in their places). Delivered: all R pairs, as an adapter of rank R.
Needs base weights that are not quantised wherever r_i < R.
"""

from collections.abc import Iterable
from pathlib import Path

import torch

from backend.contracts.metrics import MetricName
from backend.contracts.params.lora import FedPLoraParams
from worker.federated.client_round import Stopwatch, below, relative_change
from worker.federated.compatibility import refuse_unequal
from worker.federated.low_rank import LowRank, factors_of, products_of
from worker.federated.seeds import generator
from worker.federated.strategies.lora_client import (
    deliver_lora,
    load_lora,
    load_products,
    lora_update,
    received_factors,
    train_lora,
)
from worker.federated.strategies.lora_exchange import (
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

NUM_PAIRS = "num_pairs"
"""R, in the state's `meta` and the plan's settings."""


class FedPLora:
    """See the module's text."""

    def __init__(self, params: FedPLoraParams) -> None:
        self.params = params

    def check(self, federation: FederationSpec) -> list[Refusal]:
        """Refuses clients of another depth or width."""
        return refuse_unequal(self.params, federation)

    def init_state(self, federation: FederationSpec, seed: int) -> ServerState:
        """R pairs with a random A and a zero B."""
        num_pairs = max(client.lora_rank for client in federation.clients)
        tensors = start_factors(federation.clients[0], num_pairs, seed)
        return ServerState(tensors, {"seed": seed, NUM_PAIRS: num_pairs})

    def configure_round(
        self, state: ServerState, federation: FederationSpec, round_number: int, *, deliver: bool
    ) -> dict[str, ClientPlan]:
        """All pairs for every client."""
        return make_plans(
            state,
            federation,
            round_number,
            deliver=deliver,
            tensors=lambda client: state.tensors,
            settings={NUM_PAIRS: state.meta[NUM_PAIRS]},
        )

    def train_client(self, plan: ClientPlan, client: LocalClient) -> ClientUpdate:
        """Adds all other pairs to the base model, and trains and sends the client's choice."""
        watch = Stopwatch()
        with watch.measure(MetricName.SECONDS_LOAD):
            pairs = products_of(received_factors(plan, client, plan.settings[NUM_PAIRS]))
            chosen = chosen_pairs(
                plan.seed,
                plan.client_id,
                plan.round_number,
                plan.settings[NUM_PAIRS],
                client.spec.lora_rank,
            )
            lora = load_lora(plan, client)
            lora.put(factors_of({role: _some(product, chosen) for role, product in pairs.items()}))
            if not chosen.all():
                lora.add_to_base({role: _some(p, ~chosen) for role, p in pairs.items()})
        trained = train_lora(plan, client, lora, watch)
        private = below("moments", trained.head_moments)
        return lora_update(plan, client, lora, trained, shared=lora.stacked(), private=private)

    def deliver_client(self, plan: ClientPlan, client: LocalClient, folder: Path) -> Metrics:
        """Writes all pairs as the client's adapter."""
        pairs = products_of(received_factors(plan, client, plan.settings[NUM_PAIRS]))
        return deliver_lora(client, load_products(plan, client, pairs), folder)

    def aggregate(
        self, state: ServerState, federation: FederationSpec, updates: Iterable[ClientUpdate]
    ) -> tuple[ServerState, AggregationReport]:
        """Each pair <- its mean over the clients that trained it."""
        seed, num_pairs = state.meta["seed"], state.meta[NUM_PAIRS]
        sums = {name: torch.zeros_like(t).double() for name, t in state.tensors.items()}
        weights = torch.zeros(num_pairs, dtype=torch.float64)
        num_clients = 0
        for client, update in accepted(updates, federation, expected_factors):
            chosen = chosen_pairs(
                seed, client.client_id, update.round_number, num_pairs, client.lora_rank
            )
            positions, weight = chosen.nonzero().flatten(), update.num_examples
            for name, tensor in update.shared.items():
                axis = 1 if name.startswith("A/") else 2
                sums[name].index_add_(axis, positions, tensor.double(), alpha=weight)
            weights[chosen] += weight
            num_clients += 1
        factors = {name: _mean(name, sums[name], weights, state.tensors[name]) for name in sums}
        values = {
            "relative_change": relative_change(state.tensors, factors),
            "pairs_trained": float((weights > 0).double().mean()),
        }
        return ServerState(factors, state.meta), AggregationReport(num_clients, values)


def chosen_pairs(
    seed: int, client_id: str, round_number: int, num_pairs: int, rank: int
) -> torch.Tensor:
    """Which pairs a client trains in a round, (num_pairs,) bool with `rank` of them true."""
    source = generator(seed, client_id, round_number, "pairs")
    chosen = torch.zeros(num_pairs, dtype=torch.bool)
    chosen[torch.randperm(num_pairs, generator=source)[:rank]] = True
    return chosen


def _some(product: LowRank, chosen: torch.Tensor) -> LowRank:
    return LowRank(product.a[:, chosen], product.b[:, :, chosen])


def _mean(name: str, total: torch.Tensor, weights: torch.Tensor, old: torch.Tensor) -> torch.Tensor:
    """The mean where anybody trained the pair, the old value elsewhere."""
    by_pair = weights[:, None] if name.startswith("A/") else weights
    return torch.where(by_pair > 0, total / by_pair.clamp(min=1.0), old.double()).float()
