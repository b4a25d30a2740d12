import ast
import hashlib
import re
from collections import Counter

import pytest

from backend.contracts.datasets import BUILTIN_TASK_KINDS, BuiltinDataset, BuiltinTaskName
from worker.federated.tasks.feelings import FEELINGS
from worker.federated.tasks.generators import NUM_OPTIONS, generate
from worker.federated.tasks.partition import split_of
from worker.federated.tasks.programs import run_program
from worker.federated.tasks.stories import GAINS, LOSSES, MAX_RESULT, NAMES, TRANSFERS

GENERATED = [name for name in BuiltinTaskName if name != BuiltinTaskName.HANDWRITTEN_DIGITS]
ARITHMETIC = [name for name in GENERATED if name != BuiltinTaskName.STORY_CLASSIFICATION]


DIGESTS = {
    BuiltinTaskName.ARITHMETIC_FILL_IN: "d49e82925893",
    BuiltinTaskName.ARITHMETIC_CHOICE: "62c8d9c5b524",
    BuiltinTaskName.ARITHMETIC_PROGRAM: "70c97c2b3818",
    BuiltinTaskName.STORY_CLASSIFICATION: "db1fc430efef",
    BuiltinTaskName.HANDWRITTEN_DIGITS: "e049ba36b723",
}


def rows(task, split=None, **values):
    made = generate(BuiltinDataset(task=task, **values))
    return [row for row in made if split in (None, row.split)]


def without_names(question):
    """The same text for stories that differ in names only; who is who stays told apart."""
    numbered = {}
    for word in question.replace(".", "").replace("?", "").split():
        if word in NAMES:
            numbered.setdefault(word, f"NAME{len(numbered)}")
    return " ".join(numbered.get(word, word) for word in question.split())


def solve(question):
    """Reads a story independently of the code that wrote it."""
    story, asked = question.split(" How many ")
    numbers = [int(word.strip(".")) for word in story.split() if word.strip(".").isdigit()]
    left, right = numbers
    if "Each" in story:
        return left * right
    person = asked.split()[-2]
    actor, verb, *_ = story.split(". ")[1].split()
    if verb in TRANSFERS:
        return left - right if actor == person else left + right
    if verb == "has":
        return left + right if story.endswith("more.") else left - right
    assert (verb in GAINS) != (verb in LOSSES)
    return left + right if verb in GAINS else left - right


@pytest.mark.parametrize("task", BuiltinTaskName)
def test_the_same_seed_gives_the_same_rows_and_another_seed_others(task):
    assert rows(task, seed=5) == rows(task, seed=5)
    assert rows(task, seed=5) != rows(task, seed=6)
    counts = Counter(row.split for row in rows(task, num_train=9, num_validation=0, num_test=7))
    assert counts == {"train": 9, "test": 7}


def test_rows_never_change_from_version_to_version():
    # Stored runs refer to built-in data by seed alone: new data need a new task name.
    digests = {
        task: hashlib.sha256(
            "\n".join(f"{r.split} {r.question} {r.options} {r.answer}" for r in rows(task)).encode()
        ).hexdigest()[:12]
        for task in BuiltinTaskName
    }
    assert digests == DIGESTS


@pytest.mark.parametrize("task", BuiltinTaskName)
def test_more_training_rows_leave_the_test_rows_as_they_are(task):
    assert rows(task, "test", num_train=8) == rows(task, "test", num_train=200)


def test_no_problem_is_in_two_splits_whatever_the_seed_and_the_format():
    seen = {"train": set(), "validation": set(), "test": set()}
    for seed in range(12):
        for task in GENERATED:
            for row in rows(task, seed=seed, num_train=100, num_validation=50, num_test=100):
                seen[row.split].add(without_names(row.question))
    assert min(map(len, seen.values())) > 500
    assert not seen["train"] & seen["test"]
    assert not seen["train"] & seen["validation"]
    assert not seen["validation"] & seen["test"]


@pytest.mark.parametrize("task", GENERATED)
def test_no_problem_occurs_twice_in_one_data_set(task):
    questions = [without_names(row.question) for row in rows(task, num_train=1000, num_test=500)]
    assert len(set(questions)) == len(questions)


def test_largest_data_set_of_the_contract_can_be_made():
    made = rows(
        BuiltinTaskName.STORY_CLASSIFICATION, num_train=1, num_validation=10_000, num_test=10_000
    )
    assert len(made) == 20_001


def test_partition_has_its_shares():
    counts = Counter(split_of(f"key {i}") for i in range(10_000))
    # Standard deviations are below 50.
    assert abs(counts["train"] - 6000) < 250
    assert abs(counts["validation"] - 2000) < 200
    assert abs(counts["test"] - 2000) < 200


@pytest.mark.parametrize("task", ARITHMETIC)
def test_every_answer_is_the_solution_of_its_story(task):
    results = set()
    for row in rows(task, seed=3, num_train=400):
        match task:
            case BuiltinTaskName.ARITHMETIC_FILL_IN:
                value = int(row.answer)
                assert row.final == row.answer
            case BuiltinTaskName.ARITHMETIC_CHOICE:
                assert len(set(row.options)) == NUM_OPTIONS
                value = int(row.options["ABCD".index(row.answer)])
            case BuiltinTaskName.ARITHMETIC_PROGRAM:
                value = run_program(row.answer)
                assert str(value) == row.final
                assert isinstance(ast.parse(row.answer).body[0], ast.Assign)
        assert value == solve(row.question)
        assert 0 <= value <= MAX_RESULT
        results.add(value)
    assert len(results) > 15


def test_labels_are_balanced_and_every_letter_is_sometimes_right():
    letters = Counter(
        r.answer for r in rows(BuiltinTaskName.ARITHMETIC_CHOICE, "train", num_train=2000)
    )
    labels = Counter(
        r.answer for r in rows(BuiltinTaskName.STORY_CLASSIFICATION, "train", num_train=2000)
    )
    assert set(letters) == set("ABCD")
    assert set(labels) == set(FEELINGS)
    # Binomial(2000, 1/4): standard deviation 19.
    assert all(abs(count - 500) < 100 for count in labels.values())
    assert max(letters.values()) < 800
    assert min(letters.values()) > 100


def test_options_ascend_and_hold_what_a_wrong_operation_gives():
    for row in rows(BuiltinTaskName.ARITHMETIC_CHOICE):
        options = [int(option) for option in row.options]
        left, right = map(int, re.findall(r"\d+", row.question))
        assert options == sorted(options)
        assert {abs(left - right), left + right, left * right} <= set(options)


def test_every_task_has_a_generator():
    assert {BUILTIN_TASK_KINDS[task] for task in BuiltinTaskName if rows(task)} == set(
        BUILTIN_TASK_KINDS.values()
    )
