"""Batched evaluation against slow, unpadded, uncached loops over single examples."""

import math

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from backend.contracts.base_models import BaseModelRef
from backend.contracts.datasets import (
    BUILTIN_TASK_KINDS,
    BuiltinDataset,
    BuiltinTaskName,
    Example,
)
from backend.contracts.enums import TaskKind
from worker.federated.base_models import load_base_model
from worker.federated.errors import InvalidConfigError
from worker.federated.evaluation import SPARE_ANSWER_TOKENS, answer_loss, evaluate
from worker.federated.tasks.encoding import encode_examples, encode_prompts
from worker.federated.tasks.generators import generate

MAX_LENGTH = 96


@pytest.fixture(scope="module")
def tokenizer():
    ref = BaseModelRef(source="builtin", id="tiny_llama")
    return load_base_model(ref, device=torch.device("cpu"), dtype=torch.float32)[1]


@pytest.fixture
def model(tokenizer):
    """Random weights, so large that answers differ between prompts."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        initializer_range=0.3,
    )
    return LlamaForCausalLM(config)


def examples(task, count=9):
    made = generate(BuiltinDataset(task=task, num_train=count, num_validation=0, num_test=1))
    return made[:count]


@torch.no_grad()
def token_log_probs(model, ids):
    """Log-probability of each token of one sequence, given those before it."""
    logits = model.eval()(input_ids=torch.tensor([ids])).logits[0, :-1]
    return logits.log_softmax(-1).gather(1, torch.tensor(ids[1:]).unsqueeze(1))[:, 0]


@torch.no_grad()
def slow_greedy(model, prompt, num_tokens, end):
    ids = list(prompt)
    for _ in range(num_tokens):
        ids.append(int(model.eval()(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
        if ids[-1] == end:
            break
    return ids[len(prompt) :]


@pytest.mark.parametrize(
    "task", [BuiltinTaskName.ARITHMETIC_FILL_IN, BuiltinTaskName.ARITHMETIC_PROGRAM]
)
def test_generation_in_batches_equals_one_prompt_at_a_time(model, tokenizer, task):
    kind, rows = BUILTIN_TASK_KINDS[task], examples(task)
    found = evaluate(model, tokenizer, kind, rows, max_length=MAX_LENGTH, batch_size=4)
    longest = max(len(tokenizer(row.answer, add_special_tokens=False).input_ids) for row in rows)
    expected = [
        tokenizer.decode(
            slow_greedy(model, prompt, longest + SPARE_ANSWER_TOKENS, tokenizer.eos_token_id),
            skip_special_tokens=True,
        ).strip()
        for prompt in encode_prompts(tokenizer, kind, rows, MAX_LENGTH)
    ]
    assert len(set(expected)) > 1
    assert list(found.predictions) == expected


def test_choice_takes_the_most_likely_letter(model, tokenizer):
    rows = examples(BuiltinTaskName.ARITHMETIC_CHOICE)
    found = evaluate(model, tokenizer, TaskKind.CHOICE, rows, max_length=MAX_LENGTH, batch_size=4)
    expected = []
    for prompt in encode_prompts(tokenizer, TaskKind.CHOICE, rows, MAX_LENGTH):
        scores = {}
        for letter in "ABCD":
            (token,) = tokenizer(letter, add_special_tokens=False).input_ids
            scores[letter] = float(token_log_probs(model, [*prompt, token])[-1])
        expected.append(max(scores, key=scores.__getitem__))
    assert len(set(expected)) > 1
    assert list(found.predictions) == expected
    right = sum(row.answer == letter for row, letter in zip(rows, expected, strict=True))
    assert found.accuracy == right / len(rows)


@pytest.mark.parametrize("labels", [["red", "green apples", "blue"], ["no", "no way", "yes"]])
def test_labels_of_several_tokens_compete_by_their_whole_likelihood(model, tokenizer, labels):
    rows = [Example(question=f"Thing {n}", answer=labels[n % 3], split="test") for n in range(7)]
    found = evaluate(
        model, tokenizer, TaskKind.CLASSIFICATION, rows, max_length=MAX_LENGTH, batch_size=3
    )
    tokens = {label: tokenizer(label, add_special_tokens=False).input_ids for label in labels}
    if "no way" in labels:
        tokens = {label: [*ids, tokenizer.eos_token_id] for label, ids in tokens.items()}
    expected = []
    for prompt in encode_prompts(tokenizer, TaskKind.CLASSIFICATION, rows, MAX_LENGTH):
        scores = {
            label: float(token_log_probs(model, [*prompt, *ids])[-len(ids) :].sum())
            for label, ids in tokens.items()
        }
        expected.append(max(scores, key=scores.__getitem__))
    assert list(found.predictions) == expected


def test_labels_come_from_all_examples_even_if_few_are_asked(model, tokenizer):
    rows = examples(BuiltinTaskName.STORY_CLASSIFICATION, 40)
    few = evaluate(
        model, tokenizer, TaskKind.CLASSIFICATION, rows, max_length=MAX_LENGTH, max_examples=5
    )
    every = evaluate(model, tokenizer, TaskKind.CLASSIFICATION, rows, max_length=MAX_LENGTH)
    assert few.num_examples == 5
    assert few.predictions == every.predictions[:5]


def test_answer_loss_is_the_mean_over_answer_tokens(model, tokenizer):
    rows = examples(BuiltinTaskName.ARITHMETIC_PROGRAM)
    total, count = 0.0, 0
    for row in encode_examples(tokenizer, TaskKind.PROGRAM, rows, MAX_LENGTH):
        length = sum(label >= 0 for label in row.labels)
        total -= float(token_log_probs(model, list(row.input_ids))[-length:].sum())
        count += length
    found = answer_loss(
        model, tokenizer, TaskKind.PROGRAM, rows, max_length=MAX_LENGTH, batch_size=4
    )
    assert math.isclose(found, total / count, rel_tol=1e-5)


def test_modes_of_all_modules_and_gradients_are_left_as_found(model, tokenizer):
    model.train()
    model.model.layers[0].eval()
    before = [module.training for module in model.modules()]
    rows = examples(BuiltinTaskName.ARITHMETIC_FILL_IN, 3)
    evaluate(model, tokenizer, TaskKind.FILL_IN, rows, max_length=MAX_LENGTH)
    answer_loss(model, tokenizer, TaskKind.FILL_IN, rows, max_length=MAX_LENGTH)
    assert [module.training for module in model.modules()] == before
    with pytest.raises(InvalidConfigError):
        bad = [Example(question="q", answer="none", split="test")]
        evaluate(model, tokenizer, TaskKind.FILL_IN, bad, max_length=MAX_LENGTH)
    assert [module.training for module in model.modules()] == before
    assert torch.is_grad_enabled()


def test_nothing_to_evaluate_is_an_error(model, tokenizer):
    for function in (evaluate, answer_loss):
        with pytest.raises(InvalidConfigError, match=r"[Nn]othing|no examples"):
            function(model, tokenizer, TaskKind.FILL_IN, [], max_length=MAX_LENGTH)


def test_answer_outside_the_options_is_named(model, tokenizer):
    row = Example(question="Which one?", answer="E", options=["1", "2"], split="test")
    with pytest.raises(InvalidConfigError, match=r"'E' of 'Which one\?' is none of A, B"):
        evaluate(model, tokenizer, TaskKind.CHOICE, [row], max_length=MAX_LENGTH)
