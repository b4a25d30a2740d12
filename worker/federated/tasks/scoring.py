"""Decides whether an answer is right, by value rather than by spelling."""

import math
import re
from collections.abc import Sequence

from backend.contracts.answers import parse_number
from backend.contracts.datasets import Example
from worker.federated.errors import InvalidConfigError
from worker.federated.tasks.programs import ProgramError, run_program

RELATIVE_TOLERANCE = 1e-4
"""Numbers this close count as equal: answers are often rounded, programs use floats."""


def same_number(left: float, right: float) -> bool:
    """Equality up to `RELATIVE_TOLERANCE`; small values are compared absolutely."""
    return math.isclose(left, right, rel_tol=RELATIVE_TOLERANCE, abs_tol=1e-6)


def first_label(text: str, labels: Sequence[str]) -> str | None:
    """The label that occurs first in `text` as a whole word, ignoring case; None if none does.

    Of labels that start at the same place the longest counts: "not sad" before "not".
    """
    places = []
    for label in labels:
        found = re.search(rf"(?<!\w){re.escape(label)}(?!\w)", text, re.IGNORECASE)
        if found:
            places.append((found.start(), -len(label), label))
    return min(places)[2] if places else None


def number_is_right(output: str, example: Example) -> bool:
    """Judges a `fill_in` answer by its number.

    Raises:
        InvalidConfigError: the example itself holds no number.
    """
    expected = _expected_number(example)
    if expected is None:
        raise InvalidConfigError(
            f"The fill_in example {example.question[:60]!r} has no number in its final or answer "
            f"({example.final or example.answer!r}). Put the number to score into `final`."
        )
    actual = parse_number(output)
    return actual is not None and same_number(actual, expected)


def program_is_right(output: str, example: Example) -> bool:
    """Judges a `program` answer by the value it computes; a broken program is wrong.

    Raises:
        InvalidConfigError: the example has no numeric `final` and its own program fails.
    """
    expected = parse_number(example.final) if example.final else None
    if expected is None:
        try:
            expected = float(run_program(example.answer))
        except ProgramError as error:
            raise InvalidConfigError(
                f"The program example {example.question[:60]!r} cannot be scored: {error}. "
                "Correct its answer, or put the value to score into `final`."
            ) from error
    try:
        return same_number(float(run_program(output)), expected)
    except ProgramError:
        return False


def _expected_number(example: Example) -> float | None:
    return parse_number(example.final if example.final else example.answer)
