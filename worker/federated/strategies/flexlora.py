"""FlexLoRA: the server adds up whole updates, and gives each client the best part of its rank.

Idea. Updates B_i A_i of any ranks have one shape, so their weighted sum is exact. Its singular
value decomposition gives, for every rank, the closest adapter there is (Eckart-Young): a client of
rank r_i receives the first r_i singular directions. The sum is never formed: the SVD comes from
thin factors side by side (`low_rank`), so the server needs no d_out x d_in matrix.

Reference: Bai et al., Federated Fine-tuning of Large Language Models under Heterogeneous Tasks and
Client Resources, arXiv 2402.11505. Deviations: the published code decomposes the dense matrix and
fixes alpha at 16; here each client's own scale is in its B.

| Symbol | Shape | |
|---|---|---|
| A_i, B_i | (r_i, in), (out, r_i) | factors of client i; `lora_client` for storage and scale |
| p_i | | examples of client i over those of all clients that sent |
| U S V^T | | SVD of sum_i p_i B_i A_i; client i gets B = (U S)[:, :r_i], A = V^T[:r_i] |

Directions beyond r_i are lost for client i, and by its next update in part for everybody; the
report says how much of the sum the smallest and the largest rank keep.

Leaves the client: A and B, L r_i sum_k (in_k + out_k) values of fp32; the same number arrives.
Never leaves: data, base model, a head, AdamW's moments (of the head only: singular directions have
nothing to do with the factors that trained last).
"""

from collections.abc import Iterable, Mapping
from pathlib import Path

from backend.contracts.metrics import MetricName
from backend.contracts.params.lora import FlexLoraParams
from worker.federated.client_round import Stopwatch, below
from worker.federated.compatibility import refuse_unequal
from worker.federated.low_rank import LowRank, factors_of, norm, padded, products_of, truncated
from worker.federated.strategies.leading import leading, rank_of
from worker.federated.strategies.lora_client import (
    deliver_lora,
    load_received,
    lora_update,
    train_lora,
)
from worker.federated.strategies.lora_exchange import (
    ProductSum,
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


class FlexLora:
    """See the module's text."""

    def __init__(self, params: FlexLoraParams) -> None:
        self.params = params

    def check(self, federation: FederationSpec) -> list[Refusal]:
        """Refuses clients of another depth or width."""
        return refuse_unequal(self.params, federation)

    def init_state(self, federation: FederationSpec, seed: int) -> ServerState:
        """One random A and a zero B of the largest rank."""
        rank = max(client.lora_rank for client in federation.clients)
        return ServerState(start_factors(federation.clients[0], rank, seed), {"seed": seed})

    def configure_round(
        self, state: ServerState, federation: FederationSpec, round_number: int, *, deliver: bool
    ) -> dict[str, ClientPlan]:
        """As many of the singular directions as the client's rank has room for."""
        return make_plans(
            state,
            federation,
            round_number,
            deliver=deliver,
            tensors=lambda client: leading(state.tensors, client.lora_rank),
        )

    def train_client(self, plan: ClientPlan, client: LocalClient) -> ClientUpdate:
        """Trains A and B from the received directions on, and sends both."""
        watch = Stopwatch()
        with watch.measure(MetricName.SECONDS_LOAD):
            lora = load_received(plan, client)
        trained = train_lora(plan, client, lora, watch)
        private = below("moments", trained.head_moments)
        return lora_update(plan, client, lora, trained, shared=lora.stacked(), private=private)

    def deliver_client(self, plan: ClientPlan, client: LocalClient, folder: Path) -> Metrics:
        """Writes the closest adapter of the client's rank."""
        return deliver_lora(client, load_received(plan, client), folder)

    def aggregate(
        self, state: ServerState, federation: FederationSpec, updates: Iterable[ClientUpdate]
    ) -> tuple[ServerState, AggregationReport]:
        """The SVD of sum_i p_i B_i A_i, as many directions of it as the largest rank needs."""
        products, num_clients = ProductSum(), 0
        for _client, update in accepted(updates, federation, expected_factors):
            products.add(update.num_examples, update.shared)
            num_clients += 1
        total = products.result()
        factors = factors_of(closest(total, rank_of(state.tensors)))
        smallest = min(client.lora_rank for client in federation.clients)
        size = norm(total.values())
        values = {
            "update_norm": size,
            "kept_by_largest_rank": _share(factors, size),
            "kept_by_smallest_rank": _share(leading(factors, smallest), size),
        }
        return ServerState(factors, state.meta), AggregationReport(num_clients, values)


def closest(products: Mapping[str, LowRank], rank: int) -> dict[str, LowRank]:
    """The closest products of this rank: A = V^T, B = U S, singular values falling, fp32.

    Every prefix of components is the closest product of that smaller rank. Where a matrix has
    fewer singular values than `rank`, zeros fill up.
    """
    return {role: padded(truncated(product, rank), rank) for role, product in products.items()}


def _share(factors: Tensors, size: float) -> float:
    """Norm of a truncated SVD by that of the whole, in [0, 1]; 1 where there is nothing to lose."""
    return min(1.0, norm(products_of(factors).values()) / size) if size > 0 else 1.0
