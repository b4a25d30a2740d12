"""One of a few known answers, judged by a causal model: label likelihood.

Training over the whole vocabulary spends its first steps on learning that an answer is a label at
all, in a direction of each model's own. Here the logit of a label is its log-likelihood as a whole
answer, and the cross entropy runs over the labels alone; what is left to learn is the task, which
is what clients have in common. `evaluation.evaluate` chooses among labels by the same numbers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from transformers import Cache, PreTrainedModel, PreTrainedTokenizerBase

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
        labels: every possible answer.
        max_length: tokens of a prompt; longer ones lose their beginning.
        max_eval_examples: only the first so many are judged; None: all.

    Raises:
        InvalidConfigError: fewer than two labels, or one that begins another.
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
        self.tokenizer = tokenizer
        self._task = task
        self._labels = list(labels)
        self._max_length = max_length
        self._max_eval_examples = max_eval_examples
        self._tokens = encode_texts(tokenizer, self._labels)
        _require_distinct(self._labels, self._tokens)
        # What is read of a label before its last token; labels of one token need only the prompt.
        self._read = sorted({tuple(tokens[:-1]) for tokens in self._tokens if len(tokens) > 1})

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
        prompts = encode_prompts(self.tokenizer, self._task, examples, self._max_length)
        return [
            Row(tuple(prompt), class_of(example, self._labels))
            for prompt, example in zip(prompts, examples, strict=True)
        ]

    def collate(self, rows: Sequence[Row]) -> Batch:
        """`input_ids` and `attention_mask` of the prompts, padded on the left, and `labels`."""
        ids, mask = pad_left(
            [row.prompt for row in rows], padding_id(self.tokenizer), torch.device("cpu")
        )
        labels = torch.tensor([row.label for row in rows])
        return {"input_ids": ids, "attention_mask": mask, "labels": labels}

    def targets(self, batch: Batch) -> torch.Tensor:
        """The labels, (rows,)."""
        return batch["labels"]

    def target_logits(self, forward: Forward, batch: Batch) -> torch.Tensor:
        """Log-likelihood of each label after its prompt, in nats, (rows, labels)."""
        mask = batch["attention_mask"]
        asked = forward(
            input_ids=batch["input_ids"],
            attention_mask=mask,
            position_ids=(mask.cumsum(-1) - 1).clamp(min=0),
            logits_to_keep=1,
            use_cache=bool(self._read),
        )
        first = asked.logits[:, -1].float().log_softmax(-1)
        after = self._after_beginnings(forward, batch, asked.past_key_values) if self._read else {}
        scores = []
        for tokens in self._tokens:
            score = first[:, tokens[0]]
            for place, token in enumerate(tokens[1:]):
                score = score + after[tuple(tokens[:-1])][:, place, token]
            scores.append(score)
        return torch.stack(scores, dim=1)

    def _after_beginnings(
        self, forward: Forward, batch: Batch, cache: Cache | None
    ) -> dict[tuple[int, ...], torch.Tensor]:
        """Log-probabilities after each token of each label's beginning.

        The prompts are read once, and what the model remembers of them serves all labels; where it
        remembers nothing (gradient checkpointing), they are read again with every beginning.

        Returns:
            By beginning, (rows, its length, vocabulary).
        """
        prompts, mask = batch["input_ids"], batch["attention_mask"]
        num_rows, num_reads = len(prompts), len(self._read)
        longest = max(map(len, self._read))
        pad = padding_id(self.tokenizer)
        tails = torch.tensor(
            [[*read, *[pad] * (longest - len(read))] for read in self._read], device=mask.device
        ).repeat(num_rows, 1)
        known = torch.tensor(
            [[1] * len(read) + [0] * (longest - len(read)) for read in self._read],
            device=mask.device,
        ).repeat(num_rows, 1)
        whole = torch.cat([mask.repeat_interleave(num_reads, dim=0), known], dim=1)
        places = (whole.cumsum(-1) - 1).clamp(min=0)
        if cache is not None and cache.get_seq_length() > 0:
            cache.batch_repeat_interleave(num_reads)
            logits = forward(
                input_ids=tails,
                attention_mask=whole,
                position_ids=places[:, -longest:],
                past_key_values=cache,
                use_cache=True,
            ).logits
        else:
            logits = forward(
                input_ids=torch.cat([prompts.repeat_interleave(num_reads, dim=0), tails], dim=1),
                attention_mask=whole,
                position_ids=places,
                logits_to_keep=longest,
                use_cache=False,
            ).logits
        log_probs = logits.float().log_softmax(-1).view(num_rows, num_reads, longest, -1)
        return {read: log_probs[:, number] for number, read in enumerate(self._read)}

    def accuracy(self, model: PreTrainedModel, examples: Sequence[Example]) -> float:
        """Share of examples whose class has the highest logit."""
        return accuracy(self, model, examples[: self._max_eval_examples])

    def mean_loss(self, model: PreTrainedModel, examples: Sequence[Example]) -> float:
        """Nats per example."""
        return mean_loss(self, model, examples)

    def save_head(self, folder: Path) -> None:
        """Nothing to write."""


def _require_distinct(labels: Sequence[str], tokens: Sequence[Sequence[int]]) -> None:
    if len(labels) < 2:
        raise InvalidConfigError(f"There are {len(labels)} labels: there is nothing to choose.")
    for label, row in zip(labels, tokens, strict=True):
        for other, longer in zip(labels, tokens, strict=True):
            if label != other and list(longer[: len(row)]) == list(row):
                raise InvalidConfigError(
                    f"The label {label!r} begins {other!r}: rename one, or train on whole answers."
                )
