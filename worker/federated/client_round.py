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
from worker.federated.evaluation import answer_loss, evaluate
from worker.federated.tasks.encoding import encode_examples, padding_id
from worker.federated.training import Batch, endless_batches
from worker.federated.types import (
    ClientPlan,
    ClientSpec,
    LocalClient,
    Metrics,
    Progress,
    Tensors,
)

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


def measure(model: PreTrainedModel, client: LocalClient) -> Measured:
    """Accuracy on the test split and, if there is one, loss on the validation split."""
    client.on_progress(Progress("evaluating", 0, 1))
    accuracy = evaluate(
        model,
        client.tokenizer,
        client.data.task,
        client.data.test,
        max_length=client.training.max_length,
        max_examples=client.training.max_eval_examples,
    ).accuracy
    if not client.data.validation:
        return Measured(accuracy, None)
    loss = answer_loss(
        model,
        client.tokenizer,
        client.data.task,
        client.data.validation,
        max_length=client.training.max_length,
    )
    return Measured(accuracy, loss)


def training_batches(plan: ClientPlan, client: LocalClient) -> Iterator[list[Batch]]:
    """The client's batches of one round; the order follows from run, client and round alone."""
    encoded = encode_examples(
        client.tokenizer, client.data.task, client.data.train, client.training.max_length
    )
    pad_id = padding_id(client.tokenizer)
    stream = (plan.seed, plan.client_id, plan.round_number)
    return endless_batches(encoded, client.training, pad_id, *stream)


def lora_bytes(spec: ClientSpec) -> int:
    """What sending a client's LoRA factors A and B would cost: L sum_k r (d_in + d_out) 4."""
    widths = sum(shape.in_features + shape.out_features for shape in spec.modules.values())
    return spec.architecture.num_layers * spec.lora_rank * widths * BYTES_PER_VALUE


def before_and_after(before: Measured, after: Measured) -> Metrics:
    """The two measurements under their names; losses only where there are any."""
    values = {
        MetricName.ACCURACY_BEFORE_TRAINING: before.accuracy,
        MetricName.ACCURACY_AFTER_TRAINING: after.accuracy,
        MetricName.VALIDATION_LOSS_BEFORE_TRAINING: before.validation_loss,
        MetricName.VALIDATION_LOSS_AFTER_TRAINING: after.validation_loss,
    }
    return {name: value for name, value in values.items() if value is not None}


def snapshot(tensors: Mapping[str, torch.Tensor]) -> Tensors:
    """Copies on the CPU, out of the graph."""
    return {name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}


def relative_change(start: Mapping[str, torch.Tensor], end: Mapping[str, torch.Tensor]) -> float:
    """Norm of the difference over the norm of the start; 0 where both are zero."""
    changed = sum(float((end[name].detach().cpu() - start[name]).pow(2).sum()) for name in start)
    before = sum(float(tensor.pow(2).sum()) for tensor in start.values())
    return (changed / before) ** 0.5 if before > 0 else float(changed > 0)


def below(prefix: str, tensors: Mapping[str, torch.Tensor]) -> Tensors:
    """Puts every name below `prefix`."""
    return {f"{prefix}/{name}": tensor for name, tensor in tensors.items()}


def take(prefix: str, tensors: Mapping[str, torch.Tensor] | None) -> Tensors:
    """What lies below `prefix`, by the rest of its name; empty for None."""
    start = f"{prefix}/"
    named = (tensors or {}).items()
    return {name.removeprefix(start): t for name, t in named if name.startswith(start)}
