"""What every strategy measures around a client's training, in the same way."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import cast

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from backend.contracts.metrics import MetricName
from worker.federated.adapters import folded
from worker.federated.memory import explained_memory
from worker.federated.objectives.objective import Batch
from worker.federated.optimizer import Group
from worker.federated.training import endless_batches
from worker.federated.types import (
    ClientPlan,
    ClientSpec,
    LocalClient,
    Metrics,
    Progress,
    Tensors,
)
from worker.federated.wire import TensorSpec, encoded_bytes, payload_bytes, require_tensors

BYTES_PER_VALUE = 4  # fp32


@dataclass(frozen=True, slots=True)
class Measured:
    """How good a model is on a client's own data."""

    accuracy: float  # share in [0, 1] on the test split
    validation_loss: float | None  # nats per answer token; None without a validation split


@dataclass(slots=True)
class Stopwatch:
    """Seconds spent, by metric; one name may be measured several times."""

    metrics: Metrics = field(default_factory=dict)

    @contextmanager
    def measure(self, name: MetricName) -> Iterator[None]:
        """Adds the wall-clock time of the block to `name`."""
        start = time.monotonic()
        yield
        self.metrics[name] = self.metrics.get(name, 0.0) + time.monotonic() - start


def body_of(adapted: PeftModel) -> PreTrainedModel:
    """The base model inside a PEFT model, with the adapter's layers in place."""
    return cast(PreTrainedModel, adapted.get_base_model())


def measure_when_due(
    model: PreTrainedModel, client: LocalClient, num_rounds_done: int
) -> Measured | None:
    """Measures, or gives None between two evaluations."""
    is_due = num_rounds_done % client.training.evaluate_every == 0
    return measure(model, client) if is_due else None


def measure(model: PreTrainedModel, client: LocalClient) -> Measured:
    """Accuracy on the test split and, if there is one, loss on the validation split."""
    client.on_progress(Progress("evaluating", 0, 1))
    with explained_memory(client.training), folded(model):
        accuracy = client.objective.accuracy(model, client.data.test)
        if not client.data.validation:
            return Measured(accuracy, None)
        return Measured(accuracy, client.objective.mean_loss(model, client.data.validation))


def training_batches(plan: ClientPlan, client: LocalClient) -> Iterator[list[Batch]]:
    """The client's batches of one round; the order follows from run, client and round alone."""
    rows = client.objective.encode(client.data.train)
    stream = (plan.seed, plan.client_id, plan.round_number)
    return endless_batches(rows, client.training, client.objective.collate, *stream)


@torch.no_grad()
def load_head(client: LocalClient, origin: str) -> None:
    """Puts the client's own head in place, if it has one and kept it."""
    head, known = client.objective.head, take("head", client.private)
    if not known:
        return
    require_tensors(known, {name: TensorSpec(tuple(p.shape)) for name, p in head.items()}, origin)
    for name, parameter in head.items():
        parameter.copy_(known[name])


def head_groups(client: LocalClient) -> list[Group]:
    """The group that trains the client's head in every phase; none without a head."""
    if not client.objective.head:
        return []
    rate = client.objective.head_learning_rate or client.training.learning_rate
    parameters = {f"head/{name}": p for name, p in client.objective.head.items()}
    return [Group("head", parameters, rate)]


def kept_head(client: LocalClient) -> Tensors:
    """The head among what the client keeps."""
    return below("head", snapshot(client.objective.head))


def lora_bytes(spec: ClientSpec) -> int:
    """What sending a client's LoRA factors A and B would cost: L sum_k r (d_in + d_out) 4."""
    widths = sum(shape.in_features + shape.out_features for shape in spec.modules.values())
    return spec.architecture.num_layers * spec.lora_rank * widths * BYTES_PER_VALUE


def traffic(shared: Tensors, plan: ClientPlan) -> Metrics:
    """Bytes of one client and round: as messages, and of the values in them alone."""
    return {
        MetricName.BYTES_UP: float(encoded_bytes(shared)),
        MetricName.BYTES_DOWN: float(encoded_bytes(plan.tensors)),
        MetricName.BYTES_UP_VALUES: float(payload_bytes(shared)),
        MetricName.BYTES_DOWN_VALUES: float(payload_bytes(plan.tensors)),
    }


def before_and_after(before: Measured | None, after: Measured | None) -> Metrics:
    """The measurements that were made, under their names; losses only where there are any."""
    values: dict[MetricName, float | None] = {}
    if before is not None:
        values[MetricName.ACCURACY_BEFORE_TRAINING] = before.accuracy
        values[MetricName.VALIDATION_LOSS_BEFORE_TRAINING] = before.validation_loss
    if after is not None:
        values[MetricName.ACCURACY_AFTER_TRAINING] = after.accuracy
        values[MetricName.VALIDATION_LOSS_AFTER_TRAINING] = after.validation_loss
    return {name: value for name, value in values.items() if value is not None}


def snapshot(tensors: Mapping[str, torch.Tensor]) -> Tensors:
    """Copies on the CPU, out of the graph."""
    return {name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}


def relative_change(start: Mapping[str, torch.Tensor], end: Mapping[str, torch.Tensor]) -> float:
    """Norm of the difference over the norm of the start; 0 where both are zero."""
    changed = sum(float((end[name].detach().cpu() - start[name]).pow(2).sum()) for name in start)
    before = sum(float(tensor.pow(2).sum()) for tensor in start.values())
    return (changed / before) ** 0.5 if before > 0 else float(changed > 0)


def factor_changes(start: Mapping[str, torch.Tensor], end: Mapping[str, torch.Tensor]) -> Metrics:
    """Norms of the change of the factors whose names begin with `A/` and with `B/`."""
    names = {MetricName.CHANGE_NORM_A: "A/", MetricName.CHANGE_NORM_B: "B/"}
    return {
        metric: sum(
            float((end[name].detach().cpu() - tensor).double().pow(2).sum())
            for name, tensor in start.items()
            if name.startswith(letter)
        )
        ** 0.5
        for metric, letter in names.items()
    }


def below(prefix: str, tensors: Mapping[str, torch.Tensor]) -> Tensors:
    """Puts every name below `prefix`."""
    return {f"{prefix}/{name}": tensor for name, tensor in tensors.items()}


def take(prefix: str, tensors: Mapping[str, torch.Tensor] | None) -> Tensors:
    """What lies below `prefix`, by the rest of its name; empty for None."""
    start = f"{prefix}/"
    named = (tensors or {}).items()
    return {name.removeprefix(start): t for name, t in named if name.startswith(start)}
