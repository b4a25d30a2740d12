"""Local only: plain LoRA on each client's own data, round after round, with nothing shared.

The baseline that every sharing strategy has to beat. Its factors start, and its batches come, as in
the other strategies, so that with equal settings arms differ in sharing and in nothing else.

Symbols: y = W x + (lora_alpha / r) B A x, A (r, in_features), B (out_features, r).
Leaves the client: nothing. Stays: A, B, AdamW's moments; with a guard the best A and B so far.
Reference: Hu et al., LoRA, arXiv 2106.09685.
"""

from collections.abc import Iterable
from pathlib import Path

import torch

from backend.contracts.metrics import MetricName
from backend.contracts.params.lora import LocalOnlyParams
from worker.federated.client_round import Measured, Stopwatch, below, kept_head, snapshot, take
from worker.federated.strategies.guard import serve_better, still_kept
from worker.federated.strategies.lora_client import (
    LoraModel,
    deliver_lora,
    load_lora,
    lora_update,
    store_of,
    train_lora,
    write_delivered,
)
from worker.federated.strategies.lora_exchange import accepted, make_plans
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


class LocalOnly:
    """See the module's text."""

    def __init__(self, params: LocalOnlyParams) -> None:
        self.params = params

    def check(self, federation: FederationSpec) -> list[Refusal]:
        """Refuses nobody: clients need nothing in common."""
        return []

    def init_state(self, federation: FederationSpec, seed: int) -> ServerState:
        """Remembers the seed, and nothing else."""
        return ServerState(tensors={}, meta={"seed": seed})

    def configure_round(
        self, state: ServerState, federation: FederationSpec, round_number: int, *, deliver: bool
    ) -> dict[str, ClientPlan]:
        """An empty plan for every client."""
        return make_plans(state, federation, round_number, deliver=deliver)

    def train_client(self, plan: ClientPlan, client: LocalClient) -> ClientUpdate:
        """Trains A and B for one round."""
        watch = Stopwatch()
        with watch.measure(MetricName.SECONDS_LOAD):
            lora = _load(plan, client)
            guarded = self.params.guard == "validation"
            start = _state(lora, client) if guarded else {}
        trained = train_lora(plan, client, lora, watch, before=_carried(client))
        private = {
            **below("factors", snapshot(lora.factors())),
            **below("moments", trained.moments),
            **below("measured", _as_tensors(trained.after)),
        }
        if guarded:
            private |= still_kept(client.private, trained.metrics, start, _state(lora, client))
        return lora_update(plan, client, lora, trained, shared={}, private=private)

    def deliver_client(self, plan: ClientPlan, client: LocalClient, folder: Path) -> Metrics:
        """Measures the trained adapter once more and writes it, or the one that the guard kept."""
        lora = _load(plan, client)
        if self.params.guard == "off":
            return deliver_lora(client, lora, folder)

        def restore(state: Tensors) -> None:
            lora.restore(take("factors", state), "AB", store_of(plan))

        metrics = serve_better(lora.model, client, restore)
        write_delivered(client, lora, folder)
        return metrics

    def aggregate(
        self, state: ServerState, federation: FederationSpec, updates: Iterable[ClientUpdate]
    ) -> tuple[ServerState, AggregationReport]:
        """Checks that nothing was sent, and changes nothing.

        Raises:
            InvalidUpdateError: an update carries a tensor.
        """
        num_clients = sum(1 for _ in accepted(updates, federation, lambda client, update: {}))
        return state, AggregationReport(num_clients)


def _load(plan: ClientPlan, client: LocalClient) -> LoraModel:
    lora = load_lora(plan, client)
    lora.restore(take("factors", client.private), "AB", store_of(plan))
    return lora


def _state(lora: LoraModel, client: LocalClient) -> Tensors:
    """All that the client's answers depend on beside its base model."""
    return {**below("factors", snapshot(lora.factors())), **kept_head(client)}


def _as_tensors(measured: Measured | None) -> Tensors:
    if measured is None:
        return {}
    values = {"accuracy": measured.accuracy, "validation_loss": measured.validation_loss}
    return {
        name: torch.tensor(value, dtype=torch.float64)
        for name, value in values.items()
        if value is not None
    }


def _carried(client: LocalClient) -> Measured | None:
    """The last round's closing measurement: nothing happens to this client between its rounds."""
    known = {name: tensor.item() for name, tensor in take("measured", client.private).items()}
    return Measured(known["accuracy"], known.get("validation_loss")) if known else None
