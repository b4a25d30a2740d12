"""HetLoRA: one LoRA of the largest rank, of which each client trains the first r_i components.

Idea. The server keeps factors of rank r_max; a client of rank r_i receives and trains their first
r_i rows and columns. What comes back is padded with zeros to r_max and averaged factor by factor,
weighted by how large each client's update is, so that clients who learned more count more. With
self-pruning a client pushes its last components towards zero, and gives them up for good when
that succeeded.

Reference: Cho et al., Heterogeneous LoRA for Federated Fine-tuning of On-Device Foundation Models,
arXiv 2401.06432. No code of the authors was seen. Choices of ours: one weight per client over all
its layers and modules; equal weights while nobody's update has a size; B carries each client's
scale, so that `lora_alpha` may differ; pruned components stay pruned to the end of the run.

| Symbol | Shape | |
|---|---|---|
| A_i, B_i | (r_i, in), (out, r_i) | factors of client i; `lora_client` for storage and scale |
| q_i | | norm of B_i A_i over the sum of all clients' norms |
| A, B | (r_max, in), (out, r_max) | sum_i q_i [A_i; 0] and sum_i q_i [B_i, 0] |
| gamma, lambda | | pruning: r_i falls to t = max(r_min, floor(gamma r_i)), see `Tail` |

Components beyond a client's rank count as zero in the mean, which shrinks what only large clients
train: that is the published method (and its known weakness), not an oversight.

Leaves the client: A and B of its current rank, L r_i sum_k (in_k + out_k) values of fp32 in each
direction. Never leaves: data, base model, a head, AdamW's moments.
"""

import math
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch

from backend.contracts.metrics import MetricName
from backend.contracts.params.lora import HetLoraParams
from worker.federated.client_round import Stopwatch, below, relative_change
from worker.federated.compatibility import refuse_unequal
from worker.federated.low_rank import factors_of, norm, padded, products_of
from worker.federated.objectives.objective import Batch
from worker.federated.strategies.leading import leading, rank_of
from worker.federated.strategies.lora_client import (
    LoraModel,
    deliver_lora,
    load_received,
    lora_update,
    train_lora,
)
from worker.federated.strategies.lora_exchange import (
    Expected,
    WeightedMean,
    accepted,
    factor_specs,
    make_plans,
    start_factors,
)
from worker.federated.types import (
    AggregationReport,
    ClientPlan,
    ClientSpec,
    ClientUpdate,
    FederationSpec,
    LocalClient,
    Metrics,
    Refusal,
    ServerState,
)
from worker.federated.wire import TensorSpec

SMALLEST_WEIGHT = 1e-30
"""Weight of an update of size zero: next to nothing beside others, equal among its like."""


class HetLora:
    """See the module's text."""

    def __init__(self, params: HetLoraParams) -> None:
        self.params = params

    def check(self, federation: FederationSpec) -> list[Refusal]:
        """Refuses clients of another depth or width."""
        return refuse_unequal(self.params, federation)

    def init_state(self, federation: FederationSpec, seed: int) -> ServerState:
        """One random A and a zero B of the largest rank, and every client's own rank."""
        ranks = {client.client_id: client.lora_rank for client in federation.clients}
        factors = start_factors(federation.clients[0], max(ranks.values()), seed)
        return ServerState(factors, {"seed": seed, "ranks": ranks})

    def configure_round(
        self, state: ServerState, federation: FederationSpec, round_number: int, *, deliver: bool
    ) -> dict[str, ClientPlan]:
        """The first components of the common factors, as many as the client has left."""
        ranks = state.meta["ranks"]
        return make_plans(
            state,
            federation,
            round_number,
            deliver=deliver,
            tensors=lambda client: leading(state.tensors, ranks[client.client_id]),
        )

    def train_client(self, plan: ClientPlan, client: LocalClient) -> ClientUpdate:
        """Trains A and B from the common components on, and sends those that it keeps."""
        watch = Stopwatch()
        with watch.measure(MetricName.SECONDS_LOAD):
            lora = _load(plan, client)
            rank = rank_of(plan.tensors)
            target = self._pruned(rank)
            tail = Tail(lora, target, self.params.pruning_weight)
            size = tail.size()
        prunes = target < rank
        trained = train_lora(plan, client, lora, watch, penalty=tail.penalty if prunes else None)
        gives_up = prunes and tail.size() < size
        moments = trained.head_moments if gives_up else trained.moments
        return lora_update(
            plan,
            client,
            lora,
            trained,
            shared=leading(lora.stacked(), target if gives_up else rank),
            private=below("moments", moments),
        )

    def deliver_client(self, plan: ClientPlan, client: LocalClient, folder: Path) -> Metrics:
        """Writes the client's components of the common factors as its adapter."""
        return deliver_lora(client, _load(plan, client), folder)

    def aggregate(
        self, state: ServerState, federation: FederationSpec, updates: Iterable[ClientUpdate]
    ) -> tuple[ServerState, AggregationReport]:
        """A <- sum_i q_i A_i and B <- sum_i q_i B_i, padded with zeros, q_i by size of update."""
        ranks: dict[str, int] = dict(state.meta["ranks"])
        largest = rank_of(state.tensors)
        mean, sizes = WeightedMean(), []
        for client, update in accepted(updates, federation, self._expected(ranks)):
            products = products_of(update.shared)
            sizes.append(max(norm(products.values()), SMALLEST_WEIGHT))
            same = {role: padded(product, largest) for role, product in products.items()}
            mean.add(sizes[-1], factors_of(same))
            ranks[client.client_id] = rank_of(update.shared)
        factors = mean.result()
        values = {
            "relative_change": relative_change(state.tensors, factors),
            "largest_weight": max(sizes) / sum(sizes),
            "mean_rank": sum(ranks.values()) / len(ranks),
        }
        meta = {**state.meta, "ranks": ranks}
        return ServerState(factors, meta), AggregationReport(mean.num_clients, values)

    def _pruned(self, rank: int) -> int:
        """The rank that a client of this rank may fall to in one round."""
        if not self.params.self_pruning:
            return rank
        smallest = min(self.params.smallest_rank, rank)
        return max(smallest, math.floor(self.params.pruning_factor * rank))

    def _expected(self, ranks: Mapping[str, int]) -> Expected:
        """Factors of the client's last rank, or of the one that it may have fallen to."""

        def expected(client: ClientSpec, update: ClientUpdate) -> Mapping[str, TensorSpec]:
            rank = ranks[client.client_id]
            fallen = factor_specs(client, self._pruned(rank))
            sent = {name: TensorSpec(tuple(t.shape), t.dtype) for name, t in update.shared.items()}
            return fallen if sent == fallen else factor_specs(client, rank)

        return expected


class Tail:
    """The last components of a client's factors, which self-pruning may give up.

    Args:
        lora: the model whose factors are watched as they change.
        first: number of components before the tail.
        weight: lambda.
    """

    def __init__(self, lora: LoraModel, first: int, weight: float) -> None:
        factors = lora.factors()
        self._pairs = [
            (factors[f"A/{module.name}"], factors[f"B/{module.name}"]) for module in lora.modules
        ]
        self._first = first
        self._weight = weight

    def penalty(self, logits: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Lambda sum over modules of |B[:, t:]|_F |A[t:, :]|_F, a scalar with gradient."""
        return self._weight * self._product(logits.device)

    @torch.no_grad()
    def size(self) -> float:
        """The sum without lambda, as the factors are now."""
        return float(self._product(self._pairs[0][0].device))

    def _product(self, device: torch.device) -> torch.Tensor:
        total = torch.zeros((), device=device)
        for a, b in self._pairs:
            norms = (
                torch.linalg.vector_norm(a[self._first :]),
                torch.linalg.vector_norm(b[:, self._first :]),
            )
            total = total + (norms[0] * norms[1]).to(device)
        return total


def _load(plan: ClientPlan, client: LocalClient) -> LoraModel:
    """The model with the plan's components, whose rank may be below the client's own."""
    return load_received(plan, client, rank=max(rank_of(plan.tensors), 1))
