"""FedSA-LoRA: A is shared and averaged, B stays with its client.

A tends to learn what inputs have in common and B what an owner makes of them, so averaging A alone
carries general knowledge and leaves every client its own function; tasks may differ.

Reference: Guo et al., Selective Aggregation for Low-Rank Adaptation in Federated Learning,
ICLR 2025, arXiv 2410.01463. Deviation: A is weighted by numbers of examples.

Leaves the client: A (r, in) per layer and role, L r sum_k in_k values of fp32 in each direction.
Never leaves: data, base model, B, a head, AdamW's moments (kept: A goes on from an average with
its own, B from where it was).
"""

from collections.abc import Iterable
from pathlib import Path

from backend.contracts.metrics import MetricName
from backend.contracts.params.lora import FedSaLoraParams
from worker.federated.client_round import Stopwatch, below, snapshot, take
from worker.federated.compatibility import refuse_unequal
from worker.federated.strategies.lora_client import (
    LoraModel,
    deliver_lora,
    load_received,
    lora_update,
    store_of,
    train_lora,
)
from worker.federated.strategies.lora_exchange import (
    averaged_letter,
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


class FedSaLora:
    """See the module's text."""

    def __init__(self, params: FedSaLoraParams) -> None:
        self.params = params

    def check(self, federation: FederationSpec) -> list[Refusal]:
        """Refuses clients of another rank, depth or width."""
        return refuse_unequal(self.params, federation)

    def init_state(self, federation: FederationSpec, seed: int) -> ServerState:
        """One random A for everybody."""
        first = federation.clients[0]
        return ServerState(start_factors(first, first.lora_rank, seed, "A"), {"seed": seed})

    def configure_round(
        self, state: ServerState, federation: FederationSpec, round_number: int, *, deliver: bool
    ) -> dict[str, ClientPlan]:
        """The common A for every client."""
        return make_plans(
            state, federation, round_number, deliver=deliver, tensors=lambda client: state.tensors
        )

    def train_client(self, plan: ClientPlan, client: LocalClient) -> ClientUpdate:
        """Trains A and B, sends A and keeps B."""
        watch = Stopwatch()
        with watch.measure(MetricName.SECONDS_LOAD):
            lora = _load(plan, client)
        trained = train_lora(plan, client, lora, watch)
        private = {
            **below("factors", snapshot(lora.factors("B"))),
            **below("moments", trained.moments),
        }
        return lora_update(plan, client, lora, trained, shared=lora.stacked("A"), private=private)

    def deliver_client(self, plan: ClientPlan, client: LocalClient, folder: Path) -> Metrics:
        """Writes the common A and the client's own B as its adapter."""
        return deliver_lora(client, _load(plan, client), folder)

    def aggregate(
        self, state: ServerState, federation: FederationSpec, updates: Iterable[ClientUpdate]
    ) -> tuple[ServerState, AggregationReport]:
        """A <- sum_i p_i A_i."""
        return averaged_letter(state, federation, updates, "A")


def _load(plan: ClientPlan, client: LocalClient) -> LoraModel:
    lora = load_received(plan, client, letters="A")
    lora.restore(take("factors", client.private), "B", store_of(plan))
    return lora
