"""Examples as token ids: what a client trains on, and what it is asked in evaluation."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedTokenizerBase

from backend.contracts.datasets import Example
from backend.contracts.enums import TaskKind
from worker.federated.errors import InvalidConfigError, UnsupportedModelError
from worker.federated.tasks.prompts import build_prompt

IGNORED_LABEL = -100
"""Label of a position that adds nothing to the loss (PyTorch's `ignore_index`)."""


@dataclass(frozen=True, slots=True)
class EncodedExample:
    """One example as ids; `labels` holds `IGNORED_LABEL` on the prompt, else equals `input_ids`."""

    input_ids: tuple[int, ...]
    labels: tuple[int, ...]


def encode_examples(
    tokenizer: PreTrainedTokenizerBase,
    task: TaskKind,
    examples: Sequence[Example],
    max_length: int,
) -> list[EncodedExample]:
    """Prompt, answer and end-of-sequence token of every example, in order.

    A prompt that leaves no room for its answer loses its beginning; an answer is never cut, since
    half an answer teaches a wrong one. An answer that is empty, or does not fit with its end token
    and one token of prompt, is an `InvalidConfigError`.

    Args:
        tokenizer: needs an `eos_token`; a `bos_token` is put first if the tokenizer does so itself.
        task: decides the prompt.
        examples: what to encode.
        max_length: most tokens per example, at least 8.
    """
    start, end = sequence_start(tokenizer), [end_token_id(tokenizer)]
    prompts = encode_texts(tokenizer, [build_prompt(task, example) for example in examples])
    answers = encode_texts(tokenizer, [example.answer.strip() for example in examples])
    _require_learnable(examples, answers, max_length - len(start) - len(end) - 1)
    encoded = []
    for prompt, answer in zip(prompts, answers, strict=True):
        target = answer + end
        context = start + prompt[-(max_length - len(start) - len(target)) :]
        encoded.append(
            EncodedExample(
                input_ids=tuple(context + target),
                labels=tuple([IGNORED_LABEL] * len(context) + target),
            )
        )
    return encoded


def encode_prompts(
    tokenizer: PreTrainedTokenizerBase,
    task: TaskKind,
    examples: Sequence[Example],
    max_length: int,
) -> list[list[int]]:
    """The prompts alone, cut from the left to `max_length` tokens, start token included."""
    start = sequence_start(tokenizer)
    prompts = encode_texts(tokenizer, [build_prompt(task, example) for example in examples])
    return [start + prompt[-(max_length - len(start)) :] for prompt in prompts]


def collate(encoded: Sequence[EncodedExample], pad_id: int) -> dict[str, torch.Tensor]:
    """A training batch, padded on the right to its longest example.

    Returns:
        `input_ids`, `attention_mask` (1 on real tokens) and `labels`, each int64 of shape
        `(batch, longest)`.
    """
    longest = max(len(example.input_ids) for example in encoded)

    def padded(rows: Sequence[tuple[int, ...]], filler: int) -> torch.Tensor:
        return torch.tensor([[*row, *[filler] * (longest - len(row))] for row in rows])

    return {
        "input_ids": padded([example.input_ids for example in encoded], pad_id),
        "attention_mask": padded([(1,) * len(example.input_ids) for example in encoded], 0),
        "labels": padded([example.labels for example in encoded], IGNORED_LABEL),
    }


def pad_left(
    rows: Sequence[Sequence[int]], pad_id: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """An evaluation batch whose rows all end at the last column, where answers begin.

    Returns:
        ids and attention mask (1 on real tokens), each int64 of shape `(batch, longest)`.
    """
    longest = max(map(len, rows))
    ids = [[pad_id] * (longest - len(row)) + list(row) for row in rows]
    mask = [[0] * (longest - len(row)) + [1] * len(row) for row in rows]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


def batches_by_length(rows: Sequence[Sequence[int]], batch_size: int) -> Iterator[list[int]]:
    """Indices of `rows` in batches of about equal length, so that little is padded."""
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    for first in range(0, len(order), batch_size):
        yield order[first : first + batch_size]


def encode_texts(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Ids of each text, without any special token."""
    if not texts:
        return []
    ids: list[list[int]] = tokenizer(list(texts), add_special_tokens=False)["input_ids"]
    return ids


def sequence_start(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The start token, if the tokenizer puts one before a text; else nothing."""
    first: list[int] = tokenizer("")["input_ids"][:1]
    return first if first == [tokenizer.bos_token_id] else []


def end_token_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Id of the token that ends an answer.

    Raises:
        UnsupportedModelError: there is none, so that a trained model could never stop.
    """
    if not isinstance(tokenizer.eos_token_id, int):
        raise UnsupportedModelError(
            f"The tokenizer of {tokenizer.name_or_path!r} has no eos_token. "
            "Set eos_token in its tokenizer_config.json."
        )
    return tokenizer.eos_token_id


def padding_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Id that fills up short rows; the end token where a tokenizer names none (it is masked)."""
    pad = tokenizer.pad_token_id
    return pad if isinstance(pad, int) else end_token_id(tokenizer)


def _require_learnable(
    examples: Sequence[Example], answers: Sequence[Sequence[int]], room: int
) -> None:
    for number, (example, answer) in enumerate(zip(examples, answers, strict=True), start=1):
        if not answer:
            raise InvalidConfigError(
                f"Example {number} ({example.question[:60]!r}) has nothing to learn: its answer "
                f"{example.answer!r} gives no token. Give it an answer or remove it."
            )
    longest = max((len(answer) for answer in answers), default=0)
    if longest > room:
        number = next(i for i, answer in enumerate(answers, start=1) if len(answer) > room)
        raise InvalidConfigError(
            f"Example {number} ({examples[number - 1].question[:60]!r}) has nothing to learn: its "
            f"answer of {len(answers[number - 1])} tokens does not fit max_length, which leaves "
            f"{room} for an answer. Raise max_length by at least {longest - room} or shorten it."
        )
