"""The built-in data sets: endless, seeded, and with splits that can never overlap.

Three arithmetic tasks ask the same kind of story in three formats, so that clients with different
tasks have a skill in common; the fourth, feelings, shares only the language with them.
"""

from collections.abc import Callable, Iterator
from random import Random
from string import ascii_uppercase
from typing import Protocol, TypeVar

from backend.contracts.datasets import SPLITS, BuiltinDataset, BuiltinTaskName, Example, Split
from worker.federated.tasks.feelings import draw_scene
from worker.federated.tasks.images import handwritten_digits
from worker.federated.tasks.partition import split_of
from worker.federated.tasks.stories import MAX_RESULT, Problem, draw_problem

NUM_OPTIONS = 4


class _Keyed(Protocol):
    @property
    def key(self) -> str: ...


_T = TypeVar("_T", bound=_Keyed)


def generate(dataset: BuiltinDataset) -> list[Example]:
    """All rows of a built-in data set: train, then validation, then test.

    The same values give the same rows on every machine. No problem occurs twice, and which split
    a problem belongs to depends on the problem alone (`partition.split_of`): the test rows of one
    client are never training rows of another, whatever their seeds and formats.
    """
    sizes: dict[Split, int] = {
        "train": dataset.num_train,
        "validation": dataset.num_validation,
        "test": dataset.num_test,
    }
    if dataset.task is BuiltinTaskName.HANDWRITTEN_DIGITS:
        digits = handwritten_digits(
            seed=dataset.seed, **{f"num_{split}": size for split, size in sizes.items()}
        )
        return [*digits.train, *digits.validation, *digits.test]
    make_rows = _GENERATORS[dataset.task]
    return [
        example
        for split in SPLITS
        # One stream per split: a longer training part leaves the test rows as they are.
        for example in make_rows(
            Random(f"{dataset.task}/{dataset.seed}/{split}"),  # noqa: S311 - data, no secret
            split,
            sizes[split],
        )
    ]


def _distinct(draw: Callable[[Random], _T], rng: Random, split: Split, count: int) -> Iterator[_T]:
    seen: set[str] = set()
    while len(seen) < count:
        drawn = draw(rng)
        if drawn.key not in seen and split_of(drawn.key) == split:
            seen.add(drawn.key)
            yield drawn


def _fill_in(rng: Random, split: Split, count: int) -> Iterator[Example]:
    for problem in _distinct(draw_problem, rng, split, count):
        yield Example(
            question=f"{problem.story} {problem.question}",
            answer=str(problem.result),
            final=str(problem.result),
            split=split,
        )


def _program(rng: Random, split: Split, count: int) -> Iterator[Example]:
    for problem in _distinct(draw_problem, rng, split, count):
        yield Example(
            question=f"{problem.story} {problem.question}",
            answer=f"answer = {problem.expression}",
            final=str(problem.result),
            split=split,
        )


def _choice(rng: Random, split: Split, count: int) -> Iterator[Example]:
    for problem in _distinct(draw_problem, rng, split, count):
        options = _options(rng, problem)
        yield Example(
            question=f"{problem.story} {problem.question}",
            answer=ascii_uppercase[options.index(str(problem.result))],
            options=options,
            split=split,
        )


def _options(rng: Random, problem: Problem) -> list[str]:
    """Difference, sum and product of the story's numbers and one more, in ascending order.

    Every letter can be right, and the wrong numbers are those that a wrong operation gives.
    """
    left, right = problem.left, problem.right
    numbers = {problem.result, abs(left - right), left + right, left * right}
    others = [number for number in range(MAX_RESULT + 1) if number not in numbers]
    numbers.update(rng.sample(others, NUM_OPTIONS - len(numbers)))
    return [str(number) for number in sorted(numbers)]


def _classification(rng: Random, split: Split, count: int) -> Iterator[Example]:
    for scene in _distinct(draw_scene, rng, split, count):
        yield Example(question=scene.text, answer=scene.feeling, split=split)


_GENERATORS: dict[BuiltinTaskName, Callable[[Random, Split, int], Iterator[Example]]] = {
    BuiltinTaskName.ARITHMETIC_FILL_IN: _fill_in,
    BuiltinTaskName.ARITHMETIC_CHOICE: _choice,
    BuiltinTaskName.ARITHMETIC_PROGRAM: _program,
    BuiltinTaskName.STORY_CLASSIFICATION: _classification,
}
