"""FedEx-LoRA: factors are averaged as in FedIT, and what that misses goes into the base weights.

The mean of the updates is B' A' + rho, with A' and B' the averaged factors. The residual

    rho = sum_i p_i B_i A_i - B' A' = sum_i p_i (B_i - B') (A_i - A')

has rank (N - 1) r at most, since sum_i p_i (A_i - A') = 0. The server sends A', B' and rho as thin
factors of that rank; every client adds rho to its frozen weights, so that aggregation is exact.

Reference: Singhal et al., FedEx-LoRA: Exact Aggregation for Federated and Efficient Fine-Tuning of
Foundation Models, ACL 2025, arXiv 2410.09432. Deviations: the residual travels factored; it is
added in the orientation in which a layer stores its weights, which for GPT-2's Conv1D is the
transposed one (the published code adds it transposed everywhere).

Leaves the client: A_i and B_i, L r sum_k (in_k + out_k) values of fp32. Arrives: as much for A' and
B', and (N - 1) times as much for rho from the second round on (less where (N - 1) r exceeds
min(in, out)). Never leaves: data, base model, a head, AdamW's moments (kept: factors go on from
their average). Delivered: A', B' and all residuals as one LoRA adapter, rank up to
r + min(rounds (N - 1) r, in, out). Needs base weights that are not quantised.
"""

from collections.abc import Iterable
from pathlib import Path

from backend.contracts.metrics import MetricName
from backend.contracts.params.lora import FedExLoraParams
from worker.federated.client_round import Stopwatch, below, relative_change
from worker.federated.compatibility import refuse_unequal
from worker.federated.low_rank import difference, joined, norm, products_of, truncated
from worker.federated.strategies.base_change import (
    base_change,
    grown,
    kept_change,
    outgoing,
    settings_of,
)
from worker.federated.strategies.lora_client import (
    deliver_lora,
    load_products,
    load_received,
    lora_update,
    received_factors,
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
    ClientSpec,
    ClientUpdate,
    FederationSpec,
    LocalClient,
    Metrics,
    Refusal,
    ServerState,
    Tensors,
)


class FedExLora:
    """See the module's text."""

    def __init__(self, params: FedExLoraParams) -> None:
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
        """Common factors and the last residual, and all earlier ones for who missed a round."""

        def tensors(client: ClientSpec) -> Tensors:
            return {**_factors(state), **outgoing(state, client.client_id)}

        return make_plans(
            state,
            federation,
            round_number,
            deliver=deliver,
            tensors=tensors,
            settings=settings_of(state),
        )

    def train_client(self, plan: ClientPlan, client: LocalClient) -> ClientUpdate:
        """Adds the residuals to the base model, trains A and B, and sends both."""
        watch = Stopwatch()
        with watch.measure(MetricName.SECONDS_LOAD):
            change = base_change(plan, client)
            lora = load_received(plan, client)
            lora.add_to_base(change)
        trained = train_lora(plan, client, lora, watch)
        private = {**kept_change(change), **below("moments", trained.moments)}
        return lora_update(plan, client, lora, trained, shared=lora.stacked(), private=private)

    def deliver_client(self, plan: ClientPlan, client: LocalClient, folder: Path) -> Metrics:
        """Writes the common factors and all residuals, side by side, as the client's adapter."""
        factors = products_of(received_factors(plan, client, client.spec.lora_rank))
        change = base_change(plan, client)
        parts = {
            role: joined([product, change[role]]) if change else product
            for role, product in factors.items()
        }
        return deliver_lora(client, load_products(plan, client, parts), folder)

    def aggregate(
        self, state: ServerState, federation: FederationSpec, updates: Iterable[ClientUpdate]
    ) -> tuple[ServerState, AggregationReport]:
        """Averages the factors, and adds the residual to what goes into the base weights."""
        mean, products, senders = WeightedMean(), ProductSum(), []
        for client, update in accepted(updates, federation, expected_factors):
            mean.add(update.num_examples, update.shared)
            products.add(update.num_examples, update.shared)
            senders.append(client)
        factors, exact = mean.result(), products.result()
        rank = (len(senders) - 1) * senders[0].lora_rank
        missed = {
            role: truncated(product, rank)
            for role, product in difference(exact, products_of(factors)).items()
        }
        size = norm(exact.values())
        values = {
            "relative_change": relative_change(_factors(state), factors),
            "residual": norm(missed.values()) / size if size > 0 else 0.0,
        }
        next_state = grown(state, missed, [client.client_id for client in senders], factors)
        return next_state, AggregationReport(mean.num_clients, values)


def _factors(state: ServerState) -> Tensors:
    return {name: t for name, t in state.tensors.items() if name[:2] in {"A/", "B/"}}
