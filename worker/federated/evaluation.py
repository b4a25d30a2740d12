"""Measures a model on a client's examples: task accuracy and loss of the right answers."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from typing import Any, assert_never

import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from backend.contracts.datasets import Example
from backend.contracts.enums import TaskKind
from worker.federated.errors import InvalidConfigError
from worker.federated.tasks.encoding import (
    batches_by_length,
    encode_examples,
    encode_prompts,
    encode_texts,
    end_token_id,
    pad_left,
    padding_id,
)
from worker.federated.tasks.prompts import option_letters
from worker.federated.tasks.scoring import (
    first_label,
    number_is_right,
    program_is_right,
)

SPARE_ANSWER_TOKENS = 8
"""How far a generated answer may exceed the longest right one before it is cut."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What a model answered and how often it was right."""

    accuracy: float  # share of right answers in [0, 1]
    num_examples: int
    predictions: tuple[str, ...]  # in the order of the examples: a label, or the generated text


def evaluate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    task: TaskKind,
    examples: Sequence[Example],
    *,
    max_length: int,
    max_examples: int | None = None,
    batch_size: int = 32,
) -> Evaluation:
    """Asks the model every example, with the prompt it was trained on.

    `fill_in` and `program` are generated greedily and compared by value. `choice` and
    `classification` take the most likely of the possible answers: letters A.. for as many options
    as the example has, or the distinct answers of `examples`.

    Args:
        model: a causal model, with or without adapters; its train/eval mode is left as found.
        tokenizer: the model's.
        task: what the examples ask for.
        examples: at least one.
        max_length: most tokens of a prompt; longer ones lose their beginning.
        max_examples: only the first so many are asked; None: all.
        batch_size: sequences per forward pass; changes memory and speed, not results.

    Raises:
        InvalidConfigError: no examples, or one that cannot be scored.
    """
    asked = list(examples[:max_examples])
    if not asked:
        raise InvalidConfigError(
            f"There is nothing to evaluate: {len(examples)} examples with max_examples="
            f"{max_examples}. Give the client a test split."
        )
    with _evaluating(model):
        match task:
            # Pictures have no prompt, which `encode_prompts` says.
            case TaskKind.FILL_IN | TaskKind.PROGRAM | TaskKind.IMAGE_CLASSIFICATION:
                predictions = _generate(model, tokenizer, task, asked, max_length, batch_size)
                judge = _JUDGES[task]
                right = [judge(text, row) for text, row in zip(predictions, asked, strict=True)]
            case TaskKind.CHOICE | TaskKind.CLASSIFICATION:
                labels = _labels(task, asked, examples)
                predictions = _most_likely(
                    model, tokenizer, task, asked, labels, max_length, batch_size
                )
                right = [
                    text == _gold_label(row, options)
                    for text, row, options in zip(predictions, asked, labels, strict=True)
                ]
            case _:
                assert_never(task)
    return Evaluation(sum(right) / len(right), len(right), tuple(predictions))


def answer_loss(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    task: TaskKind,
    examples: Sequence[Example],
    *,
    max_length: int,
    batch_size: int = 32,
) -> float:
    """Mean negative log-likelihood of the right answers, in nats per answer token.

    The end token counts as part of an answer; every token weighs the same.

    Raises:
        InvalidConfigError: no examples, or an answer that is empty or longer than `max_length`.
    """
    if not examples:
        raise InvalidConfigError("There are no examples to compute a loss on.")
    encoded = encode_examples(tokenizer, task, examples, max_length)
    targets = [[label for label in row.labels if label >= 0] for row in encoded]
    # The last token is only predicted, never read.
    rows = [list(row.input_ids[:-1]) for row in encoded]
    total = 0.0
    with _evaluating(model):
        for members, log_probs in _log_prob_batches(
            model,
            rows,
            [len(target) for target in targets],
            padding_id(tokenizer),
            batch_size,
        ):
            for member, row in zip(members, log_probs, strict=True):
                total -= _log_likelihood(row, targets[member])
    return total / sum(map(len, targets))


_JUDGES: dict[TaskKind, Callable[[str, Example], bool]] = {
    TaskKind.FILL_IN: number_is_right,
    TaskKind.PROGRAM: program_is_right,
}


@contextmanager
def _evaluating(model: PreTrainedModel) -> Iterator[None]:
    modes = {module: module.training for module in model.modules()}
    model.train(False)
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes.items():
            module.training = training


def _labels(
    task: TaskKind, asked: Sequence[Example], examples: Sequence[Example]
) -> list[list[str]]:
    if task is TaskKind.CHOICE:
        return [option_letters(example) for example in asked]
    distinct = sorted({example.answer.strip() for example in examples})
    return [distinct for _ in asked]


def _gold_label(example: Example, labels: Sequence[str]) -> str:
    text = (example.final or example.answer).strip()
    label = text if text in labels else first_label(text, labels)
    if label is None:
        raise InvalidConfigError(
            f"The answer {text!r} of {example.question[:60]!r} is none of {', '.join(labels)}. "
            "Correct the answer, or add the missing option."
        )
    return label


def _generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    task: TaskKind,
    examples: Sequence[Example],
    max_length: int,
    batch_size: int,
) -> list[str]:
    answers = encode_texts(tokenizer, [example.answer for example in examples])
    config = GenerationConfig(  # type: ignore[no-untyped-call]
        max_new_tokens=max(map(len, answers)) + SPARE_ANSWER_TOKENS,
        do_sample=False,
        num_beams=1,
        use_cache=True,
        pad_token_id=padding_id(tokenizer),
        eos_token_id=end_token_id(tokenizer),
    )
    prompts = encode_prompts(tokenizer, task, examples, max_length)
    generator: Any = model  # transformers leaves `generate` untyped
    texts = [""] * len(prompts)
    for members in batches_by_length(prompts, batch_size):
        input_ids, attention_mask = pad_left(
            [prompts[member] for member in members], padding_id(tokenizer), model.device
        )
        output = generator.generate(
            input_ids=input_ids, attention_mask=attention_mask, generation_config=config
        )
        answered = tokenizer.batch_decode(output[:, input_ids.shape[1] :], skip_special_tokens=True)
        for member, text in zip(members, answered, strict=True):
            texts[member] = text.strip()
    return texts


def _most_likely(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    task: TaskKind,
    examples: Sequence[Example],
    labels: Sequence[Sequence[str]],
    max_length: int,
    batch_size: int,
) -> list[str]:
    """The label of highest total log-likelihood, per example.

    The sum over a label's tokens is its probability as a whole answer, so labels of different
    length compete fairly as what the model would write; a mean per token would favour long labels
    whose later tokens follow from the first.
    """
    words = sorted({label for options in labels for label in options})
    tokens = dict(zip(words, _label_tokens(tokenizer, words), strict=True))

    def read(label: str) -> list[int]:
        return tokens[label][:-1]  # the last token is only predicted

    # Labels that read the same share one row: with labels of one token, each prompt runs once.
    rows: list[list[int]] = []
    judged: list[tuple[int, list[str]]] = []  # per row: its example, and the labels scored on it
    prompts = encode_prompts(tokenizer, task, examples, max_length)
    for number, (prompt, options) in enumerate(zip(prompts, labels, strict=True)):
        for already_read, group in groupby(sorted(options, key=read), key=read):
            rows.append(prompt + already_read)
            judged.append((number, list(group)))
    keep = [len(tokens[group[0]]) for _, group in judged]
    scores: list[dict[str, float]] = [{} for _ in examples]
    for members, log_probs in _log_prob_batches(
        model, rows, keep, padding_id(tokenizer), batch_size
    ):
        for member, row in zip(members, log_probs, strict=True):
            number, candidates = judged[member]
            for label in candidates:
                scores[number][label] = _log_likelihood(row, tokens[label])
    return [max(score, key=lambda label: (score[label], label)) for score in scores]


def _label_tokens(tokenizer: PreTrainedTokenizerBase, labels: Sequence[str]) -> list[list[int]]:
    tokens = encode_texts(tokenizer, labels)
    if not all(tokens):
        raise InvalidConfigError(
            f"The label {labels[tokens.index([])]!r} gives no token. Rename it."
        )
    starts = {tuple(row[:length]) for row in tokens for length in range(1, len(row))}
    if starts.intersection(map(tuple, tokens)):
        # A label that begins another one would always win; its end tells them apart.
        return [[*row, end_token_id(tokenizer)] for row in tokens]
    return tokens


def _log_prob_batches(
    model: PreTrainedModel,
    rows: Sequence[Sequence[int]],
    keep: Sequence[int],
    pad_id: int,
    batch_size: int,
) -> Iterator[tuple[list[int], list[torch.Tensor]]]:
    """Which rows a batch holds, and for each the log-probabilities after its last tokens.

    Only the last `keep[i]` positions of row i are computed, shape `(keep[i], vocabulary)`,
    float32: with a large vocabulary the logits of whole prompts would not fit in memory.
    """
    for members in batches_by_length(rows, batch_size):
        input_ids, attention_mask = pad_left([rows[i] for i in members], pad_id, model.device)
        logits = model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=(attention_mask.cumsum(-1) - 1).clamp(min=0),
            logits_to_keep=max(keep[i] for i in members),
            use_cache=False,
        ).logits
        log_probs = logits.float().log_softmax(-1).cpu()
        yield (
            members,
            [row[-keep[i] :] for i, row in zip(members, log_probs, strict=True)],
        )


def _log_likelihood(log_probs: torch.Tensor, tokens: Sequence[int]) -> float:
    """Sum over `tokens` of their entry in `log_probs`, shape `(len(tokens), vocabulary)`."""
    return float(log_probs.gather(-1, torch.tensor(tokens).unsqueeze(-1)).sum())
