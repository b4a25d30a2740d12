"""What objectives with a fixed list of classes have in common: judging a model by its logits."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch.nn import functional
from transformers import PreTrainedModel

from backend.contracts.datasets import Example
from worker.federated.errors import InvalidConfigError
from worker.federated.objectives.objective import Objective

EVALUATION_BATCH = 50
HEAD_FILE = "head.safetensors"
"""Next to a delivered adapter whose head is no part of the model: the head's tensors."""

HEAD_CONFIG_FILE = "head.json"
"""Next to `HEAD_FILE`: how the head is used."""

LABELS_FILE = "labels.json"
"""Next to a delivered adapter with a head: names of the classes, in the order of its outputs."""


def class_of(example: Example, labels: Sequence[str]) -> int:
    """Number of an example's answer among the labels.

    Raises:
        InvalidConfigError: it is none of them.
    """
    answer = example.answer.strip()
    if answer not in labels:
        raise InvalidConfigError(
            f"The answer {answer!r} of {example.question[:60]!r} is none of "
            f"{', '.join(labels)}: correct it, or add the label."
        )
    return labels.index(answer)


def accuracy(objective: Objective, model: PreTrainedModel, examples: Sequence[Example]) -> float:
    """Share of examples whose class has the highest logit, in [0, 1].

    Raises:
        InvalidConfigError: there are no examples.
    """
    right = sum(
        int((logits.argmax(dim=-1) == targets).sum())
        for logits, targets in answers(objective, model, examples)
    )
    return right / len(examples)


def mean_loss(objective: Objective, model: PreTrainedModel, examples: Sequence[Example]) -> float:
    """Nats per example.

    Raises:
        InvalidConfigError: there are no examples.
    """
    total = sum(
        float(functional.cross_entropy(logits.float(), targets, reduction="sum"))
        for logits, targets in answers(objective, model, examples)
    )
    return total / len(examples)


def answers(
    objective: Objective, model: PreTrainedModel, examples: Sequence[Example]
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Logits (rows, classes) and targets (rows,) in batches of about equal length.

    Raises:
        InvalidConfigError: there are no examples.
    """
    if not examples:
        raise InvalidConfigError("There are no examples to judge: give the client some.")
    rows = objective.encode(sorted(examples, key=lambda example: len(example.question)))
    with frozen(model):
        for first in range(0, len(rows), EVALUATION_BATCH):
            batch = objective.collate(rows[first : first + EVALUATION_BATCH])
            on_device = {name: tensor.to(model.device) for name, tensor in batch.items()}
            yield objective.target_logits(model, on_device), objective.targets(on_device)


@contextmanager
def frozen(model: PreTrainedModel) -> Iterator[None]:
    """Evaluation mode without gradients; the mode is put back."""
    was_training = model.training
    model.train(mode=False)
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)
