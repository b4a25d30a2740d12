"""Local only: plain LoRA on each client's own data, round after round, with nothing shared.

The baseline that every sharing strategy has to beat. Its factors start, and its batches come, as in
the other strategies, so that with equal settings arms differ in sharing and in nothing else.

Symbols: y = W x + (lora_alpha / r) B A x, A (r, in_features), B (out_features, r).
Leaves the client: nothing. Stays: A, B, AdamW's moments.
Reference: Hu et al., LoRA, arXiv 2106.09685.
"""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import cast

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils import get_peft_model_state_dict
from torch import nn
from transformers.pytorch_utils import Conv1D

from backend.contracts.enums import RoundKind
from backend.contracts.metrics import MetricName
from backend.contracts.strategies import LocalOnlyParams
from worker.federated.adapters.export import write_lora
from worker.federated.client_round import (
    Measured,
    Stopwatch,
    before_and_after,
    below,
    body_of,
    head_groups,
    kept_head,
    load_head,
    lora_bytes,
    measure,
    measure_when_due,
    relative_change,
    snapshot,
    take,
    traffic,
    training_batches,
)
from worker.federated.errors import InvalidUpdateError
from worker.federated.memory import peak_memory_bytes
from worker.federated.optimizer import Group
from worker.federated.roles import adapted_modules, target_suffixes
from worker.federated.seeds import derive_seed, generator
from worker.federated.training import Phase, num_optimizer_steps, train
from worker.federated.types import (
    AggregationReport,
    ClientPlan,
    ClientUpdate,
    FederationSpec,
    LocalClient,
    Metrics,
    Progress,
    Refusal,
    ServerState,
    Tensors,
)
from worker.federated.wire import TensorSpec, require_tensors


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
        return {
            client.client_id: ClientPlan(
                client_id=client.client_id,
                round_number=round_number,
                kind=RoundKind.DELIVER if deliver else RoundKind.TRAIN,
                seed=state.meta["seed"],
                global_rank=federation.global_rank,
                num_slots=federation.num_slots,
                tensors={},
            )
            for client in federation.clients
        }

    def train_client(self, plan: ClientPlan, client: LocalClient) -> ClientUpdate:
        """Trains A and B for one round."""
        watch = Stopwatch()
        with watch.measure(MetricName.SECONDS_LOAD):
            adapted = _adapt(plan, client)
            model, factors = body_of(adapted), lora_factors(adapted)
            batches = training_batches(plan, client)
            start = snapshot(factors)
        with watch.measure(MetricName.SECONDS_EVALUATE):
            before = _carried(client) or measure_when_due(model, client, plan.round_number - 1)
        with watch.measure(MetricName.SECONDS_TRAIN):
            group = Group("private", factors, client.training.learning_rate)
            num_steps = num_optimizer_steps(client.training, len(client.data.train))
            trained = train(
                model,
                client.objective,
                [Phase([group, *head_groups(client)], num_steps)],
                batches,
                client.training,
                moments=take("moments", client.private),
                seed=derive_seed(plan.seed, plan.client_id, plan.round_number),
                on_progress=client.on_progress,
                checkpointing=client.checkpointing,
            )
        with watch.measure(MetricName.SECONDS_EVALUATE):
            after = measure_when_due(model, client, plan.round_number)
        metrics: Metrics = {
            **before_and_after(before, after),
            **watch.metrics,
            **trained.metrics(),
            **traffic({}, plan),
            MetricName.NUM_EXAMPLES: float(len(client.data.train)),
            MetricName.BYTES_LORA: float(lora_bytes(client.spec)),
            MetricName.PEAK_MEMORY_BYTES: float(peak_memory_bytes(model.device)),
            MetricName.PRIVATE_CHANGE: relative_change(start, factors),
        }
        return ClientUpdate(
            client_id=plan.client_id,
            round_number=plan.round_number,
            num_examples=len(client.data.train),
            shared={},
            private={
                **below("factors", snapshot(factors)),
                **kept_head(client),
                **below("moments", trained.moments),
                **({} if after is None else below("measured", _as_tensors(after))),
            },
            metrics=metrics,
        )

    def deliver_client(self, plan: ClientPlan, client: LocalClient, folder: Path) -> Metrics:
        """Measures the trained adapter once more and writes it as it is."""
        adapted = _adapt(plan, client)
        accuracy = measure(body_of(adapted), client).accuracy
        client.on_progress(Progress("exporting", 0, 1))
        tensors = get_peft_model_state_dict(adapted, save_embedding_layers=False)
        write_lora(folder, cast(LoraConfig, adapted.peft_config["default"]), tensors)
        client.objective.save_head(folder)
        return {MetricName.ACCURACY_DELIVERED: accuracy}

    def aggregate(
        self, state: ServerState, federation: FederationSpec, updates: Iterable[ClientUpdate]
    ) -> tuple[ServerState, AggregationReport]:
        """Checks that nothing was sent, and changes nothing.

        Raises:
            InvalidUpdateError: an update carries a tensor.
        """
        num_clients = 0
        for update in updates:
            require_tensors(update.shared, {}, f"the update of client {update.client_id!r}")
            num_clients += 1
        if num_clients == 0:
            raise InvalidUpdateError("No client sent an update: a round needs at least one.")
        return state, AggregationReport(num_clients)


def lora_factors(adapted: PeftModel) -> dict[str, nn.Parameter]:
    """The trained factors, as `A/<module>` (r, in_features) and `B/<module>` (out_features, r)."""
    model = body_of(adapted)
    return {
        f"{letter}/{module.name}": model.get_parameter(
            f"{module.name}.lora_{letter}.default.weight"
        )
        for letter in "AB"
        for module in adapted_modules(model)
    }


def _adapt(plan: ClientPlan, client: LocalClient) -> PeftModel:
    """Puts LoRA on every adapted module, with the client's own factors or with fresh ones.

    Fresh factors are those that TriLoRA's `random` start draws, so that both begin alike.
    """
    client.on_progress(Progress("loading", 0, 1))
    modules = adapted_modules(client.model)
    first = client.model.get_submodule(modules[0].name)
    config = LoraConfig(
        r=client.spec.lora_rank,
        lora_alpha=cast(int, client.spec.lora_alpha),
        lora_dropout=client.training.lora_dropout,
        target_modules=target_suffixes(client.model, modules),
        fan_in_fan_out=isinstance(first, Conv1D),
    )
    adapted = get_peft_model(client.model, config)
    factors = lora_factors(adapted)
    load_head(client, f"the store of client {plan.client_id!r}")
    known = take("factors", client.private)
    if known:
        expected = {name: TensorSpec(tuple(factor.shape)) for name, factor in factors.items()}
        require_tensors(known, expected, f"the store of client {plan.client_id!r}")
    seed = derive_seed(plan.seed, plan.client_id, "factors")
    with torch.no_grad():
        for module in modules:
            bound = 1 / math.sqrt(module.in_features)
            fresh = torch.empty(client.spec.lora_rank, module.in_features)
            fresh.uniform_(-bound, bound, generator=generator(seed, "A", module.name))
            factors[f"A/{module.name}"].copy_(fresh)
        for name, factor in known.items():
            factors[name].copy_(factor)
    return adapted


def _as_tensors(measured: Measured) -> Tensors:
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
