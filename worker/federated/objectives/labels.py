"""One of a few known answers, judged by a causal model's next token: label likelihood.

Training over the whole vocabulary spends its first steps on learning that an answer is a label at
all, in a direction of each model's own. Here the cross entropy runs over the first tokens of the
labels alone; what is left to learn is the task, which is what clients have in common.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from backend.contracts.datasets import Example
from backend.contracts.enums import TaskKind
from worker.federated.errors import InvalidConfigError
from worker.federated.objectives.classes import (
    accuracy,
    class_of,
    mean_loss,
)
from worker.federated.objectives.objective import Batch, Forward
from worker.federated.tasks.encoding import encode_prompts, encode_texts, pad_left, padding_id


@dataclass(frozen=True, slots=True)
class Row:
    """A prompt in ids, and the number of its label."""

    prompt: tuple[int, ...]
    label: int


class LabelObjective:
    """See the module's text; there is no head.

    Args:
        tokenizer: the model's.
        task: decides the prompt; `classification` or `choice`.
        labels: every possible answer; they must differ in their first token.
        max_length: tokens of a prompt; longer ones lose their beginning.
        max_eval_examples: only the first so many are judged; None: all.

    Raises:
        InvalidConfigError: fewer than two labels, or two that begin with the same token.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        task: TaskKind,
        labels: Sequence[str],
        *,
        max_length: int,
        max_eval_examples: int | None = None,
    ) -> None:
        self._tokenizer = tokenizer
        self._task = task
        self._labels = list(labels)
        self._max_length = max_length
        self._max_eval_examples = max_eval_examples
        firsts = [tokens[0] for tokens in encode_texts(tokenizer, self._labels) if tokens]
        if len(set(firsts)) < max(2, len(self._labels)):
            raise InvalidConfigError(
                f"The labels {', '.join(self._labels)} do not differ in their first token: rename "
                "them, or train on whole answers."
            )
        self._first_tokens = torch.tensor(firsts)

    @property
    def head(self) -> Mapping[str, nn.Parameter]:
        """Empty: the adapter says it all."""
        return {}

    @property
    def head_learning_rate(self) -> float | None:
        """Meaningless without a head."""
        return None

    def encode(self, examples: Sequence[Example]) -> Sequence[Row]:
        """Prompts in ids, and labels.

        Raises:
            InvalidConfigError: an answer is none of the labels.
        """
        prompts = encode_prompts(self._tokenizer, self._task, examples, self._max_length)
        return [
            Row(tuple(prompt), class_of(example, self._labels))
            for prompt, example in zip(prompts, examples, strict=True)
        ]

    def collate(self, rows: Sequence[Row]) -> Batch:
        """`input_ids` and `attention_mask`, padded on the left, and `labels`."""
        ids, mask = pad_left(
            [row.prompt for row in rows], padding_id(self._tokenizer), torch.device("cpu")
        )
        labels = torch.tensor([row.label for row in rows])
        return {"input_ids": ids, "attention_mask": mask, "labels": labels}

    def targets(self, batch: Batch) -> torch.Tensor:
        """The labels, (rows,)."""
        return batch["labels"]

    def target_logits(self, forward: Forward, batch: Batch) -> torch.Tensor:
        """What the model says right after the prompts, (rows, labels)."""
        mask = batch["attention_mask"]
        logits: torch.Tensor = forward(
            input_ids=batch["input_ids"],
            attention_mask=mask,
            position_ids=(mask.cumsum(-1) - 1).clamp(min=0),
            logits_to_keep=1,
            use_cache=False,
        ).logits[:, -1]
        return logits[:, self._first_tokens.to(logits.device)]

    def accuracy(self, model: PreTrainedModel, examples: Sequence[Example]) -> float:
        """Share of examples whose class has the highest logit."""
        return accuracy(self, model, examples[: self._max_eval_examples])

    def mean_loss(self, model: PreTrainedModel, examples: Sequence[Example]) -> float:
        """Nats per example."""
        return mean_loss(self, model, examples)

    def save_head(self, folder: Path) -> None:
        """Nothing to write."""
