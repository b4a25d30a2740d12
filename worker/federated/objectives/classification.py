"""Labels by a model's own classification head: sentences (BERT, GPT-2, ...) and pictures (ViT).

The head is whatever transformers puts on top of the body (`classifier`, `score`, ...), and the
pooler below it where there is one. It trains along with what the strategy trains, is federated
nowhere, and is delivered inside the adapter as PEFT's `modules_to_save`, so that stock PEFT loads
head and LoRA together.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from backend.contracts.datasets import Example
from worker.federated.errors import InvalidConfigError
from worker.federated.objectives.classes import LABELS_FILE, accuracy, class_of, mean_loss
from worker.federated.objectives.objective import Batch, Forward
from worker.federated.seeds import generator
from worker.federated.tasks.encoding import padding_id

START_DEVIATION = 0.02
"""Standard deviation of a new head's weights, as transformers draws them."""


class Inputs(Protocol):
    """How examples become what a model reads."""

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase | None:
        """Of text; None: the model reads something else."""

    @property
    def names(self) -> tuple[str, ...]:
        """Entries of a batch that the model takes; all but `labels` and bookkeeping."""

    @property
    def task_type(self) -> str | None:
        """PEFT's name of the kind of model, for `adapter_config.json`."""

    def encode(self, example: Example) -> Any:
        """One row."""

    def collate(self, rows: Sequence[Any]) -> Batch:
        """Rows as a batch with at least `attention_mask`."""


@dataclass(frozen=True, slots=True)
class TextInputs:
    """A sentence, or the two of a pair on two lines of the question."""

    tokenizer: PreTrainedTokenizerBase
    max_length: int  # tokens; longer texts lose their end

    @property
    def names(self) -> tuple[str, ...]:
        """Token types tell the sentences of a pair apart, where a family has them."""
        return ("input_ids", "attention_mask", "token_type_ids")

    @property
    def task_type(self) -> str | None:
        """A sequence classifier."""
        return "SEQ_CLS"

    def encode(self, example: Example) -> Mapping[str, list[int]]:
        """Ids with the tokenizer's special tokens."""
        encoded: Mapping[str, list[int]] = self.tokenizer(
            *example.question.split("\n", maxsplit=1), truncation=True, max_length=self.max_length
        )
        return {name: encoded[name] for name in self.names if name in encoded}

    def collate(self, rows: Sequence[Mapping[str, list[int]]]) -> Batch:
        """Each entry (rows, longest) int64, padded on the right."""
        fillers = {"input_ids": padding_id(self.tokenizer)}
        longest = max(len(row["input_ids"]) for row in rows)
        return {
            name: torch.tensor(
                [[*row[name], *[fillers.get(name, 0)] * (longest - len(row[name]))] for row in rows]
            )
            for name in rows[0]
        }


class HeadObjective:
    """Cross entropy of the classes of whole inputs.

    Args:
        model: with its head; the objective belongs to this very model.
        inputs: how it reads examples.
        labels: names of the classes, in the order of the head's outputs.
        max_eval_examples: only the first so many are judged; None: all.
        head_learning_rate: None: the run's.

    Raises:
        InvalidConfigError: the model has no head, or one for another number of classes.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        inputs: Inputs,
        labels: Sequence[str],
        *,
        max_eval_examples: int | None = None,
        head_learning_rate: float | None = None,
    ) -> None:
        self._modules = head_modules(model)
        self._head = {
            f"{module}.{name}": parameter
            for module in self._modules
            for name, parameter in model.get_submodule(module).named_parameters()
        }
        if not self._head or model.config.num_labels != len(labels):
            raise InvalidConfigError(
                f"{type(model).__name__} has a head for {model.config.num_labels} classes but the "
                f"data have {len(labels)}: load it for these labels, see load_for_task."
            )
        if inputs.tokenizer is not None:  # decoders look for the last token that is no padding
            model.config.pad_token_id = padding_id(inputs.tokenizer)
        self._inputs = inputs
        self._labels = list(labels)
        self._max_eval_examples = max_eval_examples
        self._head_learning_rate = head_learning_rate

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase | None:
        """The model's, if it reads text."""
        return self._inputs.tokenizer

    @property
    def head(self) -> Mapping[str, nn.Parameter]:
        """The head's parameters, by their names within the model."""
        return self._head

    @property
    def head_learning_rate(self) -> float | None:
        """As set."""
        return self._head_learning_rate

    def encode(self, examples: Sequence[Example]) -> Sequence[tuple[Any, int]]:
        """Inputs and classes; `InvalidConfigError` where an answer is none of the labels."""
        return [(self._inputs.encode(e), class_of(e, self._labels)) for e in examples]

    def collate(self, rows: Sequence[tuple[Any, int]]) -> Batch:
        """What the model reads, and `labels`, (rows,) int64."""
        batch = self._inputs.collate([row for row, _ in rows])
        return {**batch, "labels": torch.tensor([label for _, label in rows])}

    def targets(self, batch: Batch) -> torch.Tensor:
        """The classes, (rows,)."""
        return batch["labels"]

    def target_logits(self, forward: Forward, batch: Batch) -> torch.Tensor:
        """(rows, classes)."""
        read = {name: batch[name] for name in self._inputs.names if name in batch}
        logits: torch.Tensor = forward(**read).logits
        return logits

    def accuracy(self, model: PreTrainedModel, examples: Sequence[Example]) -> float:
        """Share of examples whose class has the highest logit; refuses an empty list."""
        return accuracy(self, model, examples[: self._max_eval_examples])

    def mean_loss(self, model: PreTrainedModel, examples: Sequence[Example]) -> float:
        """Nats per example; refuses an empty list."""
        return mean_loss(self, model, examples)

    def save_head(self, folder: Path) -> None:
        """Puts the head into the adapter that was written to `folder` before."""
        config_file, weights_file = folder / CONFIG_NAME, folder / SAFETENSORS_WEIGHTS_NAME
        config = json.loads(config_file.read_text(encoding="utf-8"))
        config["modules_to_save"] = sorted({name.rpartition(".")[2] for name in self._modules})
        config["task_type"] = self._inputs.task_type
        tensors = load_file(weights_file)
        for name, parameter in self._head.items():
            tensors[f"base_model.model.{name}"] = parameter.detach().cpu().contiguous()
        save_file(tensors, weights_file, metadata={"format": "pt"})
        config_file.write_text(json.dumps(config, indent=2, sort_keys=True), encoding="utf-8")
        (folder / LABELS_FILE).write_text(json.dumps(self._labels), encoding="utf-8")


def head_modules(model: PreTrainedModel) -> list[str]:
    """Names of the modules on top of the body, and of its pooler, that have parameters."""
    body = model.base_model_prefix
    names = [name for name, _ in model.named_children() if name != body]
    if f"{body}.pooler" in dict(model.named_modules()):
        names.append(f"{body}.pooler")
    return [
        name for name in names if next(model.get_submodule(name).parameters(), None) is not None
    ]


@torch.no_grad()
def start_head(model: PreTrainedModel, missing: Sequence[str]) -> None:
    """Draws the weights that a checkpoint lacks: the same on every machine, whatever came before.

    Args:
        model: with its head.
        missing: names of parameters; matrices are drawn, vectors become zero.
    """
    for name in missing:
        parameter = model.get_parameter(name)
        if parameter.dim() < 2:
            parameter.zero_()
        else:
            fresh = torch.empty(parameter.shape).normal_(
                0.0, START_DEVIATION, generator=generator("head", name)
            )
            parameter.copy_(fresh)
