"""The synthetic texts on which the built-in models are pre-trained.

They teach the language of the stories, number facts, copying numbers into expressions, looking up
letters, and what *some* verbs do to a number; they never contain a prompt of a task. Which way the
other verbs go is left for fine-tuning. All problems come from the training part (`split_of`), so
no text shares a problem with any test row.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random
from string import ascii_uppercase

from worker.federated.tasks.feelings import DAYS, EVENTS, FEELINGS, PLACES, draw_scene
from worker.federated.tasks.partition import split_of
from worker.federated.tasks.stories import (
    GAINS,
    LOSSES,
    MAX_RESULT,
    NAMES,
    OBJECTS,
    TRANSFERS,
    Operation,
    Problem,
    compute,
    draw_operands,
    draw_problem,
)

KNOWN_GAINS, HINTED_GAINS = frozenset(GAINS[:6]), frozenset(GAINS[6:12])
KNOWN_LOSSES, HINTED_LOSSES = frozenset(LOSSES[:6]), frozenset(LOSSES[6:12])
KNOWN_TRANSFERS = frozenset(TRANSFERS[:4])
UNKNOWN_CUES = frozenset(GAINS[6:]) | frozenset(LOSSES[6:]) | frozenset(TRANSFERS[4:])
"""Cues whose outcome no pre-training text computes."""
KNOWN_EVENTS = frozenset(event for events in EVENTS.values() for event in events[:8])

WORDS = {"+": "plus", "-": "minus", "*": "times"}


@dataclass(frozen=True, slots=True)
class Text:
    """A short text; what follows from its context is worth more in training than the rest."""

    context: str
    conclusion: str = ""  # starts with the space or line break that parts it from the context

    def __str__(self) -> str:
        return self.context + self.conclusion


def draw_text(rng: Random) -> Text:
    """One short text of any kind."""
    kinds = tuple(_KINDS)
    return rng.choices(kinds, weights=tuple(_KINDS.values()))[0](rng)


def texts(seed: int) -> Iterator[Text]:
    """An endless corpus; the same seed gives the same texts."""
    rng = Random(f"corpus/{seed}")  # noqa: S311 - data, no secret
    while True:
        yield draw_text(rng)


def vocabulary_texts(seed: int) -> Iterator[str]:
    """Texts in which every word is frequent, so that a tokenizer gives each word one token."""
    rng = Random(f"vocabulary/{seed}")  # noqa: S311 - data, no secret
    while True:
        problem, scene = draw_problem(rng), draw_scene(rng)
        yield f"{problem.story} {problem.question} {problem.cue}"
        yield f"{scene.text} Text Label Question Answer Letter Program answer"
        yield str(draw_text(rng))


def _known_problem(rng: Random) -> Problem:
    while True:
        problem = draw_problem(rng)
        if problem.cue not in UNKNOWN_CUES and split_of(problem.key) == "train":
            return problem


def _operation(rng: Random) -> Operation:
    operations: tuple[Operation, ...] = ("+", "-", "*")
    return rng.choices(operations, weights=(4, 4, 1))[0]


def _fact(rng: Random) -> Text:
    operation = _operation(rng)
    left, right = draw_operands(rng, operation)
    result = compute(left, operation, right)
    if rng.random() < 0.5:
        return Text(f"{left} {operation} {right} =", f" {result}")
    return Text(f"{left} {WORDS[operation]} {right} is", f" {result}.")


def _outcome(rng: Random) -> Text:
    problem = _known_problem(rng)
    return Text(problem.story, f" Now {problem.person} has {problem.result} {problem.thing}.")


def _expression(rng: Random) -> Text:
    problem = _known_problem(rng)
    return Text(problem.story, f" In numbers: {problem.expression} = {problem.result}")


def _outcome_list(rng: Random) -> Text:
    """A story, a list of numbers, and which of them is the outcome."""
    problem = _known_problem(rng)
    listing, result = _listing_with(rng, problem.result), str(problem.result)
    letter = listing.letter_of(result)
    answer = rng.choice((f"{letter}: {result}", f"{result}: {letter}"))
    return Text(f"{problem.story} {listing}.", f" {problem.person} has {answer}.")


def _lookup(rng: Random) -> Text:
    """A list of numbers or things, read in both directions."""
    count = rng.randint(2, 5)
    entries = rng.sample(OBJECTS, count) if rng.random() < 0.4 else _numbers(rng, count)
    listing = _Listing(tuple(entries))
    asked = rng.choices(entries, k=4)  # with repetition, so that elimination does not help
    if rng.random() < 0.3:
        found = [f" {listing.letter_of(entry)} is {entry}." for entry in asked]
    else:
        found = [f" {entry} is {listing.letter_of(entry)}." for entry in asked]
    return Text(f"{listing}.", "".join(found))


def _repetition(rng: Random) -> Text:
    """The same words and numbers twice: the quickest way to learn copying."""
    items = [rng.choice((*OBJECTS, *NAMES, *_numbers(rng, 20))) for _ in range(rng.randint(3, 8))]
    return Text(f"First: {' '.join(items)}.", f" Again: {' '.join(items)}.")


def _neighbours(rng: Random) -> Text:
    """What stands before and after an entry of a list."""
    entries = rng.sample((*OBJECTS, *NAMES), rng.randint(3, 6))
    found = []
    for place in rng.choices(range(len(entries) - 1), k=3):
        before, after = entries[place : place + 2]
        found.append(
            rng.choice((f" After {before} comes {after}.", f" Before {after} comes {before}."))
        )
    return Text(f"{', '.join(entries)}.", "".join(found))


def _fact_lookup(rng: Random) -> Text:
    operation = _operation(rng)
    left, right = draw_operands(rng, operation)
    result = compute(left, operation, right)
    listing = _listing_with(rng, result)
    return Text(
        f"{left} {operation} {right}: {listing}.", f" It is {listing.letter_of(str(result))}."
    )


@dataclass(frozen=True, slots=True)
class _Listing:
    entries: tuple[str, ...]

    def __str__(self) -> str:
        return " ".join(f"({ascii_uppercase[i]}) {e}" for i, e in enumerate(self.entries))

    def letter_of(self, entry: str) -> str:
        return ascii_uppercase[self.entries.index(entry)]


def _numbers(rng: Random, count: int) -> list[str]:
    return [str(number) for number in rng.sample(range(MAX_RESULT + 1), count)]


def _listing_with(rng: Random, number: int) -> _Listing:
    others = [entry for entry in _numbers(rng, rng.randint(3, 5)) if entry != str(number)]
    return _Listing(tuple(rng.sample([str(number), *others], len(others) + 1)))


def _assignment(rng: Random) -> Text:
    operation = _operation(rng)
    left, right = draw_operands(rng, operation)
    name = rng.choice(("x", "y", "n", "answer"))
    result = compute(left, operation, right)
    return Text(f"Program: {name} = {left} {operation} {right}", f"\nprint({name})\n{result}")


def _counting(rng: Random) -> Text:
    first, step = rng.randint(0, 20), rng.choice((1, 1, 2, 5))
    numbers = [first + step * i for i in range(6)]
    counted = [str(number) for number in numbers if number <= MAX_RESULT]
    return Text(counted[0], "".join(f", {number}" for number in counted[1:]))


def _tendency(rng: Random) -> Text:
    """Says whether a hinted verb leaves more or fewer, without any number."""
    verb = rng.choice(sorted(HINTED_GAINS | HINTED_LOSSES | KNOWN_GAINS | KNOWN_LOSSES))
    word = "more" if verb in GAINS else "fewer"
    person, thing = rng.choice(NAMES), rng.choice(OBJECTS)
    return Text(
        f"{person} has some {thing}. {person} {verb} some.", f" Now {person} has {word} {thing}."
    )


def _plain_deed(rng: Random) -> Text:
    person, other = rng.sample(NAMES, 2)
    thing, place, day = rng.choice(OBJECTS), rng.choice(PLACES), rng.choice(DAYS)
    count = rng.randint(1, 20)
    if rng.random() < 0.3:
        return Text(f"{day} at {place} {person} {rng.choice(TRANSFERS)} {other} {count} {thing}.")
    return Text(f"{day} at {place} {person} {rng.choice(GAINS + LOSSES)} {count} {thing}.")


def _reading(rng: Random) -> Text:
    """A question about the words of a story, never about its outcome."""
    while True:
        problem = draw_problem(rng)
        if split_of(problem.key) == "train":
            break
    question, answer = rng.choice(
        (
            ("Which things are counted?", problem.thing),
            ("What is the first number?", str(problem.left)),
            ("What is the second number?", str(problem.right)),
            ("Who is named first?", problem.story.split()[0]),
        )
    )
    return Text(f"{problem.story} Question: {question} Answer:", f" {answer}")


def _felt(rng: Random) -> Text:
    while True:
        scene = draw_scene(rng)
        if split_of(scene.key) == "train":
            break
    if scene.event in KNOWN_EVENTS:
        return Text(scene.text, f" {scene.person} felt {scene.feeling}.")
    return Text(scene.text)


def _misc(rng: Random) -> Text:
    feeling = rng.choice(FEELINGS)
    letter = rng.randint(0, 3)
    return Text(
        rng.choice(
            (
                f"{rng.choice(NAMES)} is {feeling} at {rng.choice(PLACES)}.",
                f"The letter after {ascii_uppercase[letter]} is {ascii_uppercase[letter + 1]}.",
                f"The label says {rng.choice(OBJECTS)}.",
                f"Text: How many {rng.choice(OBJECTS)} does {rng.choice(NAMES)} have?",
                f"Label: {rng.choice(OBJECTS)}",
                f"Letter: {ascii_uppercase[letter]}",
            )
        )
    )


_KINDS: dict[Callable[[Random], Text], float] = {
    _fact: 0.09,
    _outcome: 0.2,
    _expression: 0.08,
    _outcome_list: 0.15,
    _lookup: 0.17,
    _fact_lookup: 0.05,
    _repetition: 0.07,
    _neighbours: 0.07,
    _tendency: 0.03,
    _felt: 0.05,
    _plain_deed: 0.01,
    _reading: 0.01,
    _assignment: 0.01,
    _counting: 0.005,
    _misc: 0.005,
}
