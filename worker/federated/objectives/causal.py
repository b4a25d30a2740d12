"""Answers written by a causal language model: cross entropy of the answer tokens."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from backend.contracts.datasets import Example
from backend.contracts.enums import TaskKind
from worker.federated.evaluation import answer_loss, evaluate
from worker.federated.objectives.objective import Batch, Forward
from worker.federated.tasks.encoding import (
    IGNORED_LABEL,
    EncodedExample,
    collate,
    encode_examples,
    padding_id,
)


@dataclass(frozen=True, slots=True)
class CausalObjective:
    """Every kind of task as text after a prompt; there is no head."""

    tokenizer: PreTrainedTokenizerBase
    task: TaskKind
    max_length: int  # tokens of prompt and answer
    max_eval_examples: int | None = None  # None: all

    def encode(self, examples: Sequence[Example]) -> Sequence[EncodedExample]:
        """Prompt and answer as ids."""
        return encode_examples(self.tokenizer, self.task, examples, self.max_length)

    def collate(self, rows: Sequence[EncodedExample]) -> Batch:
        """`input_ids`, `attention_mask` and `labels`, each (batch, length) int64."""
        return collate(rows, padding_id(self.tokenizer))

    def targets(self, batch: Batch) -> torch.Tensor:
        """The answer tokens, (targets,)."""
        labels = batch["labels"][:, 1:]
        return labels[labels != IGNORED_LABEL]

    def target_logits(self, forward: Forward, batch: Batch) -> torch.Tensor:
        """Position t predicts answer token t + 1: (targets, vocabulary)."""
        logits: torch.Tensor = forward(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False
        ).logits
        return logits[:, :-1][batch["labels"][:, 1:] != IGNORED_LABEL]

    def accuracy(self, model: PreTrainedModel, examples: Sequence[Example]) -> float:
        """As `evaluation.evaluate` scores the task."""
        return evaluate(
            model,
            self.tokenizer,
            self.task,
            examples,
            max_length=self.max_length,
            max_examples=self.max_eval_examples,
        ).accuracy

    def mean_loss(self, model: PreTrainedModel, examples: Sequence[Example]) -> float:
        """Nats per answer token."""
        return answer_loss(model, self.tokenizer, self.task, examples, max_length=self.max_length)

    @property
    def head(self) -> Mapping[str, nn.Parameter]:
        """Empty: the language model head belongs to the base model."""
        return {}

    @property
    def head_learning_rate(self) -> float | None:
        """Meaningless without a head."""
        return None

    def save_head(self, folder: Path) -> None:
        """Nothing to write."""
