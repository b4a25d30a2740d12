"""What a client's model is trained for, and how it is judged, apart from any strategy.

Strategies decide *which* parameters train and what is shared; an objective decides *what* they are
trained on. Whatever it is, training is the cross entropy of some target classes: the next token of
an answer, or the label of a sentence.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from backend.contracts.datasets import Example

Batch = dict[str, torch.Tensor]
"""At least `attention_mask`, int64 (batch, length); the rest is between an objective and itself."""

Forward = Callable[..., Any]
"""A model, or a call of it with other parameters: keyword arguments -> output."""


class Objective(Protocol):
    """One client's goal, bound to its tokenizer, its kind of task and its limits."""

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase | None:
        """Of a model that reads text; None for any other."""

    def encode(self, examples: Sequence[Example]) -> Sequence[Any]:
        """Training rows, in order; `collate` understands them."""

    def collate(self, rows: Sequence[Any]) -> Batch:
        """Rows as one batch on the CPU."""

    def targets(self, batch: Batch) -> torch.Tensor:
        """The classes to predict, (targets,) int64."""

    def target_logits(self, forward: Forward, batch: Batch) -> torch.Tensor:
        """What the model says at the targets, (targets, classes)."""

    def accuracy(self, model: PreTrainedModel, examples: Sequence[Example]) -> float:
        """Share of right answers in [0, 1]."""

    def mean_loss(self, model: PreTrainedModel, examples: Sequence[Example]) -> float:
        """Mean cross entropy in nats per target."""

    @property
    def head(self) -> Mapping[str, nn.Parameter]:
        """Private parameters outside the model, such as a classifier; may be empty."""

    @property
    def head_learning_rate(self) -> float | None:
        """Of the head; None: the run's learning rate."""

    def save_head(self, folder: Path) -> None:
        """Writes the head next to a delivered adapter; nothing without a head."""
