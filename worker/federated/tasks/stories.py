"""Tiny word problems: a story of two numbers, and the one operation that answers it.

What all arithmetic tasks share is reading such a story: finding its numbers and deciding from a
verb, or from who gives to whom, whether to add, subtract or multiply.
"""

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Literal

Operation = Literal["+", "-", "*"]

NAMES = ("Tom", "Mia", "Ben", "Ana", "Sam", "Lea", "Max", "Eva", "Leo", "Zoe")
OBJECTS = (
    "apples", "books", "coins", "eggs", "cards", "shells",
    "pens", "stones", "cakes", "toys", "nuts", "stamps",
    "balls", "rings", "seeds", "keys", "cups", "hats",
    "beads", "dolls", "plums", "pears", "tickets", "notes",
)  # fmt: skip
CONTAINERS = (
    ("bags", "bag"), ("boxes", "box"), ("jars", "jar"),
    ("rows", "row"), ("bowls", "bowl"), ("trays", "tray"),
)  # fmt: skip

GAINS = (
    "finds", "gets", "buys", "wins", "picks", "makes",
    "earns", "adds", "gathers", "collects", "receives", "takes",
    "catches", "borrows", "orders", "draws", "inherits", "unpacks", "discovers", "rescues",
)  # fmt: skip
LOSSES = (
    "loses", "eats", "sells", "drops", "breaks", "uses",
    "spends", "burns", "throws", "donates", "returns", "removes",
    "misplaces", "ruins", "melts", "mails", "buries", "forgets", "crushes", "swaps",
)  # fmt: skip
TRANSFERS = ("gives", "sends", "hands", "lends", "brings", "passes", "offers", "ships")

MAX_RESULT = 20


@dataclass(frozen=True, slots=True)
class Problem:
    """One story with a question, and the expression that answers it."""

    key: str  # the same for stories that differ in names only
    cue: str  # what decides the operation: a verb, or a turn of phrase
    person: str
    thing: str
    story: str
    question: str
    left: int
    operation: Operation
    right: int

    @property
    def expression(self) -> str:
        """For example `12 - 5`."""
        return f"{self.left} {self.operation} {self.right}"

    @property
    def result(self) -> int:
        """Value of the expression, from 0 to `MAX_RESULT`."""
        return compute(self.left, self.operation, self.right)


def compute(left: int, operation: Operation, right: int) -> int:
    """`left operation right`."""
    match operation:
        case "+":
            return left + right
        case "-":
            return left - right
        case "*":
            return left * right


def draw_operands(rng: Random, operation: Operation) -> tuple[int, int]:
    """Two numbers from 1 to `MAX_RESULT` whose result is between 0 and `MAX_RESULT`."""
    if operation == "*":
        return rng.randint(2, 4), rng.randint(2, 5)
    if operation == "-":
        left = rng.randint(2, 18)
        return left, rng.randint(1, min(8, left))
    return rng.randint(2, 12), rng.randint(1, 8)


def draw_problem(rng: Random) -> Problem:
    """Any problem; gains, losses, gifts, comparisons and groups all occur."""
    frame = rng.choices(tuple(_FRAMES), weights=tuple(_FRAMES.values()))[0]
    return frame(rng)


def _event(rng: Random) -> Problem:
    operation: Operation = rng.choice(("+", "-"))
    verb = rng.choice(GAINS if operation == "+" else LOSSES)
    person, thing = rng.choice(NAMES), rng.choice(OBJECTS)
    left, right = draw_operands(rng, operation)
    return Problem(
        key=f"{verb} {thing} {left} {right}",
        cue=verb,
        person=person,
        thing=thing,
        story=f"{person} has {left} {thing}. {person} {verb} {right}.",
        question=f"How many {thing} does {person} have?",
        left=left,
        operation=operation,
        right=right,
    )


def _transfer(rng: Random) -> Problem:
    operation: Operation = rng.choice(("+", "-"))
    verb = rng.choice(TRANSFERS)
    (person, other), thing = rng.sample(NAMES, 2), rng.choice(OBJECTS)
    left, right = draw_operands(rng, operation)
    giver, taker = (other, person) if operation == "+" else (person, other)
    return Problem(
        key=f"{verb} {'to' if operation == '+' else 'from'} {thing} {left} {right}",
        cue=verb,
        person=person,
        thing=thing,
        story=f"{person} has {left} {thing}. {giver} {verb} {taker} {right}.",
        question=f"How many {thing} does {person} have?",
        left=left,
        operation=operation,
        right=right,
    )


def _comparison(rng: Random) -> Problem:
    operation: Operation = rng.choice(("+", "-"))
    word = "more" if operation == "+" else "fewer"
    (person, other), thing = rng.sample(NAMES, 2), rng.choice(OBJECTS)
    left, right = draw_operands(rng, operation)
    return Problem(
        key=f"{word} {thing} {left} {right}",
        cue=word,
        person=person,
        thing=thing,
        story=f"{other} has {left} {thing}. {person} has {right} {word}.",
        question=f"How many {thing} does {person} have?",
        left=left,
        operation=operation,
        right=right,
    )


def _groups(rng: Random) -> Problem:
    containers, container = rng.choice(CONTAINERS)
    person, thing = rng.choice(NAMES), rng.choice(OBJECTS)
    left, right = draw_operands(rng, "*")
    return Problem(
        key=f"{containers} {thing} {left} {right}",
        cue=containers,
        person=person,
        thing=thing,
        story=f"{person} has {left} {containers}. Each {container} has {right} {thing}.",
        question=f"How many {thing} does {person} have?",
        left=left,
        operation="*",
        right=right,
    )


_FRAMES: dict[Callable[[Random], Problem], float] = {
    _event: 0.6,
    _transfer: 0.15,
    _comparison: 0.1,
    _groups: 0.15,
}
