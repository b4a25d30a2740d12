"""FFA-LoRA: A is frozen at one random draw that all clients share, and only B is averaged.

With the same A everywhere the mean of the updates is the update of the mean, sum_i p_i B_i A =
(sum_i p_i B_i) A, so averaging is exact, and half of LoRA's traffic is left. The price is that
nobody learns which directions of the input matter.

Reference: Sun et al., Improving LoRA in Privacy-preserving Federated Learning, ICLR 2024,
arXiv 2403.12313. Deviations: A is LoRA's own uniform draw; B is averaged with each client's scale.

Leaves the client: B (out, r) per layer and role, L r sum_k out_k values of fp32 in each direction.
A never travels: everybody draws it from the run's seed. Never leaves: data, base model, a head,
AdamW's moments of B (kept: B goes on from the average).
"""

from collections.abc import Iterable
from pathlib import Path

from backend.contracts.metrics import MetricName
from backend.contracts.params.lora import FfaLoraParams
from worker.federated.client_round import Stopwatch, below
from worker.federated.compatibility import refuse_unequal
from worker.federated.strategies.lora_client import (
    LoraModel,
    deliver_lora,
    load_received,
    lora_update,
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


class FfaLora:
    """See the module's text."""

    def __init__(self, params: FfaLoraParams) -> None:
        self.params = params

    def check(self, federation: FederationSpec) -> list[Refusal]:
        """Refuses clients of another rank, depth or width."""
        return refuse_unequal(self.params, federation)

    def init_state(self, federation: FederationSpec, seed: int) -> ServerState:
        """A zero B for everybody."""
        first = federation.clients[0]
        return ServerState(start_factors(first, first.lora_rank, seed, "B"), {"seed": seed})

    def configure_round(
        self, state: ServerState, federation: FederationSpec, round_number: int, *, deliver: bool
    ) -> dict[str, ClientPlan]:
        """The common B for every client."""
        return make_plans(
            state, federation, round_number, deliver=deliver, tensors=lambda client: state.tensors
        )

    def train_client(self, plan: ClientPlan, client: LocalClient) -> ClientUpdate:
        """Trains B alone, and sends it."""
        watch = Stopwatch()
        with watch.measure(MetricName.SECONDS_LOAD):
            lora = _load(plan, client)
        trained = train_lora(plan, client, lora, watch, letters="B")
        private = below("moments", trained.moments)
        return lora_update(plan, client, lora, trained, shared=lora.stacked("B"), private=private)

    def deliver_client(self, plan: ClientPlan, client: LocalClient, folder: Path) -> Metrics:
        """Writes the frozen A and the common B as the client's adapter."""
        return deliver_lora(client, _load(plan, client), folder)

    def aggregate(
        self, state: ServerState, federation: FederationSpec, updates: Iterable[ClientUpdate]
    ) -> tuple[ServerState, AggregationReport]:
        """B <- sum_i p_i B_i."""
        return averaged_letter(state, federation, updates, "B")


def _load(plan: ClientPlan, client: LocalClient) -> LoraModel:
    lora = load_received(plan, client, letters="B")
    lora.put(start_factors(client.spec, client.spec.lora_rank, plan.seed, "A"))
    return lora
