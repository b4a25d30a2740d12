"""FLoRA: the server stacks all factors, everybody adds the stack to the base model and starts anew.

Factors side by side, A = [p_1 A_1; ...; p_N A_N] and B = [B_1, ..., B_N], have as their product
exactly the mean of the clients' updates, whatever their ranks. Each client adds it to its frozen
weights and trains fresh factors (B = 0) in the next round.

Reference: Wang et al., FLoRA: Federated Fine-Tuning Large Language Models with Heterogeneous
Low-Rank Adaptations, NeurIPS 2024, arXiv 2409.05976. Deviations: A is drawn anew per client and
round from the run's seed. A fresh base model gets the sum of all rounds at once (`base_change`), so
that it is rounded to the weights' dtype once and not once a round.

Leaves the client: A_i and B_i, L r_i sum_k (in_k + out_k) values of fp32. Arrives: the stack, L
(sum_i r_i) sum_k (in_k + out_k), from the second round on. Never leaves: data, base model, a head,
AdamW's moments (of the head only: fresh factors have nothing to do with the last ones).
Delivered: all that was added, as one LoRA adapter; its rank grows by sum_i r_i per round, up to
min(in, out). Needs base weights that are not quantised.
"""

from collections.abc import Iterable
from pathlib import Path

from backend.contracts.params.lora import FloraParams
from worker.federated.compatibility import refuse_unequal
from worker.federated.low_rank import norm
from worker.federated.strategies.base_change import (
    base_change,
    grown,
    outgoing,
    settings_of,
    train_fresh,
)
from worker.federated.strategies.lora_client import deliver_lora, load_products
from worker.federated.strategies.lora_exchange import (
    ProductSum,
    accepted,
    expected_factors,
    make_plans,
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


class Flora:
    """See the module's text."""

    def __init__(self, params: FloraParams) -> None:
        self.params = params

    def check(self, federation: FederationSpec) -> list[Refusal]:
        """Refuses clients of another depth or width."""
        return refuse_unequal(self.params, federation)

    def init_state(self, federation: FederationSpec, seed: int) -> ServerState:
        """Remembers the seed: nothing has been added yet."""
        return ServerState({}, {"seed": seed})

    def configure_round(
        self, state: ServerState, federation: FederationSpec, round_number: int, *, deliver: bool
    ) -> dict[str, ClientPlan]:
        """The last round's stack, and all earlier ones for who has missed a round."""
        return make_plans(
            state,
            federation,
            round_number,
            deliver=deliver,
            tensors=lambda client: outgoing(state, client.client_id),
            settings=settings_of(state),
        )

    def train_client(self, plan: ClientPlan, client: LocalClient) -> ClientUpdate:
        """Adds what was learned so far to the base model, and trains and sends fresh factors."""
        return train_fresh(plan, client, base_change)

    def deliver_client(self, plan: ClientPlan, client: LocalClient, folder: Path) -> Metrics:
        """Writes all that was added to the base model as the client's adapter."""
        lora = load_products(plan, client, base_change(plan, client))
        return deliver_lora(client, lora, folder)

    def aggregate(
        self, state: ServerState, federation: FederationSpec, updates: Iterable[ClientUpdate]
    ) -> tuple[ServerState, AggregationReport]:
        """Stacks the factors, with the weights on A alone."""
        products, senders = ProductSum(), []
        for client, update in accepted(updates, federation, expected_factors):
            products.add(update.num_examples, update.shared)
            senders.append(client.client_id)
        stack = products.result()
        values = {
            "stacked_rank": float(max(product.rank for product in stack.values())),
            "update_norm": norm(stack.values()),
        }
        return grown(state, stack, senders), AggregationReport(len(senders), values)
