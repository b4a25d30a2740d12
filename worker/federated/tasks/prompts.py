"""The one prompt of each kind of task, for training and evaluation alike.

A prompt ends with a line break and the answer starts the next line without a leading space, so
that prompt and answer can be tokenised apart without a token that spans both.
"""

from string import ascii_uppercase
from typing import assert_never

from backend.contracts.datasets import Example
from backend.contracts.enums import TaskKind
from worker.federated.errors import InvalidConfigError


def build_prompt(task: TaskKind, example: Example) -> str:
    """All that the model reads before it answers; the answer itself is not part of it."""
    match task:
        case TaskKind.FILL_IN:
            return f"Question: {example.question}\nAnswer:\n"
        case TaskKind.CHOICE:
            return f"Question: {_with_options(example)}\nLetter:\n"
        case TaskKind.PROGRAM:
            return f"Question: {example.question}\nProgram:\n"
        case TaskKind.CLASSIFICATION:
            return f"Text: {example.question}\nLabel:\n"
        case TaskKind.IMAGE_CLASSIFICATION:
            raise InvalidConfigError(
                f"Task {task.value!r} has pictures and no prompt: choose an image model, such as "
                "a ViT."
            )
        case _:
            assert_never(task)


def option_letters(example: Example) -> list[str]:
    """A, B, ... as many as the example has options."""
    return list(ascii_uppercase[: len(example.options or ())])


def _with_options(example: Example) -> str:
    # Public data sets often carry the options within the question already.
    letters = option_letters(example)
    listing = " ".join(
        f"({letter}) {option}"
        for letter, option in zip(letters, example.options or (), strict=True)
    )
    if listing in example.question:
        return example.question
    return f"{example.question}\n{listing}"
