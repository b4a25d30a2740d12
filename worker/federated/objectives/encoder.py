"""Labels of sentences and of pairs of sentences, from the embeddings of an encoder.

A text's embedding is the mean of the last hidden states over its tokens, scaled to length one.
Single texts: logit_c = s <w_c, e> + b_c, where w_c starts as the encoder's own embedding of a text
that describes class c, as a language model's label words would. A random start would fit a handful
of examples by itself, in a direction that differs from client to client.
Pairs: logit = (0, s (<e_1, e_2> - t)), where t starts as the median over the training pairs; s is
negative where the first label is the one of close pairs.

The head (w, b or s, t) is private, trains along with whatever the strategy trains, and is delivered
beside the adapter: `head.safetensors` holds it, `head.json` says how it is used, and `labels.json`
names the classes.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from peft.utils import CONFIG_NAME
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from backend.contracts.datasets import Example
from worker.federated.errors import InvalidConfigError
from worker.federated.objectives.classes import (
    EVALUATION_BATCH,
    HEAD_CONFIG_FILE,
    HEAD_FILE,
    LABELS_FILE,
    accuracy,
    class_of,
    frozen,
    mean_loss,
)
from worker.federated.objectives.objective import Batch, Forward

COSINE_SCALE = 20.0
"""s: what sentence encoders are trained with (an inverse temperature of 0.05)."""

TASK_TYPE = "FEATURE_EXTRACTION"
"""PEFT's name of a model without a head, for `adapter_config.json`."""

START_PAIRS = 1_024
"""Most training pairs that are read for the start of a head of pairs."""


@dataclass(frozen=True, slots=True)
class EncoderSettings:
    """What is common to the clients of a run.

    Attributes:
        max_length: tokens per text; longer ones lose their end.
        head_learning_rate: of the private head.
        max_eval_examples: only the first so many are judged; None: all.
    """

    max_length: int = 64
    head_learning_rate: float = 1e-3
    max_eval_examples: int | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """The texts of one example and its class."""

    texts: tuple[str, ...]
    label: int


class EncoderObjective:
    """Classification by embeddings; see the module's text.

    Args:
        tokenizer: the encoder's.
        labels: names of the classes, as the examples' answers spell them.
        head: `weight` (classes, width) and `bias` (classes,) for single texts, or `scale` and
            `threshold`, scalars, for pairs and two labels.
        settings: lengths and rates.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        labels: Sequence[str],
        head: Mapping[str, nn.Parameter],
        settings: EncoderSettings,
    ) -> None:
        self.tokenizer = tokenizer
        self._labels = list(labels)
        self._head = dict(head)
        self._settings = settings

    @property
    def head(self) -> Mapping[str, nn.Parameter]:
        """The private classifier."""
        return self._head

    @property
    def head_learning_rate(self) -> float | None:
        """As set."""
        return self._settings.head_learning_rate

    @property
    def _reads_pairs(self) -> bool:
        return "threshold" in self._head

    def encode(self, examples: Sequence[Example]) -> Sequence[Row]:
        """Texts and classes; the lines of a question are the texts of a pair.

        Raises:
            InvalidConfigError: an answer is none of the labels, or a question is no pair where
                pairs are compared.
        """
        read = pair_of if self._reads_pairs else _single_text
        return [Row(read(example), class_of(example, self._labels)) for example in examples]

    def collate(self, rows: Sequence[Row]) -> Batch:
        """`input_ids` and `attention_mask` of all texts, pairs next to each other, and `labels`."""
        texts = [text for row in rows for text in row.texts]
        batch = tokenize(self.tokenizer, texts, self._settings.max_length)
        return {**batch, "labels": torch.tensor([row.label for row in rows])}

    def targets(self, batch: Batch) -> torch.Tensor:
        """The classes, (rows,)."""
        return batch["labels"]

    def target_logits(self, forward: Forward, batch: Batch) -> torch.Tensor:
        """(rows, classes)."""
        embedded = embed(forward, batch)
        if not self._reads_pairs:
            directions, bias = self._head["weight"], self._head["bias"]
            return COSINE_SCALE * functional.linear(embedded, directions) + bias
        left, right = embedded[::2], embedded[1::2]
        cosine = (left * right).sum(dim=-1)
        same = self._head["scale"] * (cosine - self._head["threshold"])
        return torch.stack([torch.zeros_like(same), same], dim=-1)

    def accuracy(self, model: PreTrainedModel, examples: Sequence[Example]) -> float:
        """Share of examples whose class has the highest logit."""
        return accuracy(self, model, examples[: self._settings.max_eval_examples])

    def mean_loss(self, model: PreTrainedModel, examples: Sequence[Example]) -> float:
        """Nats per example."""
        return mean_loss(self, model, examples)

    def save_head(self, folder: Path) -> None:
        """Puts the head beside the adapter that was written to `folder` before.

        The adapter is declared to be one of a model without a head, as stock PEFT knows it.
        """
        config_file = folder / CONFIG_NAME
        config = {**json.loads(config_file.read_text(encoding="utf-8")), "task_type": TASK_TYPE}
        config_file.write_text(json.dumps(config, indent=2, sort_keys=True), encoding="utf-8")
        tensors = {name: p.detach().cpu().contiguous() for name, p in self._head.items()}
        save_file(tensors, folder / HEAD_FILE)
        use: dict[str, object] = {"max_length": self._settings.max_length}
        if self._reads_pairs:
            use["kind"] = "pair_cosine"
        else:
            use |= {"kind": "text_directions", "scale": COSINE_SCALE}
        text = json.dumps(use, indent=2, sort_keys=True)
        (folder / HEAD_CONFIG_FILE).write_text(text, encoding="utf-8")
        (folder / LABELS_FILE).write_text(json.dumps(self._labels), encoding="utf-8")


def text_objective(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    label_texts: Mapping[str, str],
    settings: EncoderSettings,
) -> EncoderObjective:
    """For single texts; the head starts as the embeddings of the label texts.

    Args:
        model: the encoder, still without adapters.
        tokenizer: its tokenizer.
        label_texts: class name -> a text that describes it.
        settings: lengths and rates.
    """
    directions = embed_texts(model, tokenizer, list(label_texts.values()), settings.max_length)
    head = {
        "weight": nn.Parameter(directions),
        "bias": nn.Parameter(torch.zeros(len(label_texts), device=directions.device)),
    }
    return EncoderObjective(tokenizer, list(label_texts), head, settings)


def pair_objective(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    labels: tuple[str, str],
    examples: Sequence[Example],
    settings: EncoderSettings,
    close: str | None = None,
) -> EncoderObjective:
    """For pairs; the head starts at the median cosine of the training pairs.

    At most `START_PAIRS` of them are read, at equal distances in their list.

    Args:
        model: the encoder, still without adapters.
        tokenizer: its tokenizer.
        labels: names of the two classes.
        examples: training pairs, at least one.
        settings: lengths and rates.
        close: the class of pairs that are close to each other; None: the one whose training pairs
            have the higher mean cosine. The second, where these are equal or all pairs are of one
            class.

    Raises:
        InvalidConfigError: an answer is none of the labels, or a question is no pair.
    """
    chosen = examples[:: -(-len(examples) // START_PAIRS)]
    texts = [text for example in chosen for text in pair_of(example)]
    embedded = embed_texts(model, tokenizer, texts, settings.max_length)
    cosines = (embedded[::2] * embedded[1::2]).sum(dim=-1)
    if close is None:
        classes = torch.tensor([class_of(e, labels) for e in chosen], device=cosines.device)
        close = labels[_closer_class(cosines, classes)]
    scale = COSINE_SCALE if close == labels[1] else -COSINE_SCALE
    head = {
        "scale": nn.Parameter(torch.tensor(scale, device=embedded.device)),
        "threshold": nn.Parameter(cosines.median()),
    }
    return EncoderObjective(tokenizer, labels, head, settings)


def _closer_class(cosines: torch.Tensor, classes: torch.Tensor) -> int:
    """0 where pairs of class 0 are closer in the mean than those of class 1, which exist; else 1.

    Args:
        cosines: (pairs,).
        classes: (pairs,), 0 or 1.
    """
    first, second = cosines[classes == 0], cosines[classes == 1]
    if len(first) == 0 or len(second) == 0:
        return 1
    return int(first.mean() <= second.mean())


def pair_of(example: Example) -> tuple[str, ...]:
    """The two lines of a question.

    Raises:
        InvalidConfigError: there are fewer or more.
    """
    lines = lines_of(example)
    if len(lines) != 2:
        raise InvalidConfigError(
            f"The question {example.question[:60]!r} has {len(lines)} lines where pairs of texts "
            "are compared: put one text on each of two lines."
        )
    return lines


def lines_of(example: Example) -> tuple[str, ...]:
    """The lines of a question, without blank ones."""
    return tuple(line.strip() for line in example.question.split("\n") if line.strip())


def _single_text(example: Example) -> tuple[str, ...]:
    return (example.question,)


def tokenize(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], max_length: int) -> Batch:
    """`input_ids` and `attention_mask`, each (texts, longest) int64, padded on the right."""
    encoded = tokenizer(
        list(texts), padding=True, truncation=True, max_length=max_length, return_tensors="pt"
    )
    return {"input_ids": encoded["input_ids"], "attention_mask": encoded["attention_mask"]}


def embed(forward: Forward, batch: Batch) -> torch.Tensor:
    """Mean over tokens of the last hidden states, of length one: (texts, width) fp32."""
    states = forward(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    hidden: torch.Tensor = states.last_hidden_state.float()
    weight = batch["attention_mask"].unsqueeze(-1).to(hidden.dtype)
    return functional.normalize((hidden * weight).sum(dim=1) / weight.sum(dim=1), dim=-1)


def embed_texts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    max_length: int,
) -> torch.Tensor:
    """Embeddings of texts in order, (texts, width), out of the graph."""
    parts = []
    with frozen(model):
        for first in range(0, len(texts), EVALUATION_BATCH):
            chosen = texts[first : first + EVALUATION_BATCH]
            batch = tokenize(tokenizer, chosen, max_length)
            parts.append(embed(model, {name: t.to(model.device) for name, t in batch.items()}))
    return torch.cat(parts)
