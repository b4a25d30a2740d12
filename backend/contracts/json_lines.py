"""Reads and checks uploaded task data: one JSON object per line, UTF-8.

The backend refuses a bad upload with it before anything is stored, and the worker reads the same
bytes with it before training, so what was accepted can be trained on and scored.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterable
from string import ascii_uppercase
from typing import Any

from pydantic import ValidationError

from backend.contracts.answers import parse_number
from backend.contracts.datasets import SPLITS, Example, Split
from backend.contracts.enums import TaskKind
from backend.contracts.label_texts import LabelTextsError, described_labels

MAX_LABELS = 100
"""Most distinct answers of a classification; each one is tried on every example."""

_LETTER = re.compile(r"\(?([A-Za-z])[).]?")
_TEXT_FIELDS = ("question", "answer", "final", "label_text")
_LAST_BUCKET: tuple[tuple[Split, int], ...] = (("train", 80), ("validation", 90), ("test", 100))


class JsonLinesError(ValueError):
    """The data cannot be used; the text names line, field, value and remedy."""

    def __init__(self, problem: str, *, line: int | None = None, field: str | None = None) -> None:
        super().__init__(problem if line is None else f"Line {line}: {problem}")
        self.line = line
        self.field = field


def parse_json_lines(lines: Iterable[bytes], task: TaskKind) -> list[Example]:
    """All rows of a data set, checked for the kind of task.

    Every row needs `question` and `answer`. `split` is `train`, `validation` or `test`; when no
    row has it, rows are split 80/10/10 by a hash of the question, so that the same question lands
    in the same split in every upload. Blank lines and unknown fields are ignored, numbers are
    accepted where text is expected. For `choice`, the answer becomes the bare letter.

    Args:
        lines: as a binary stream gives them.
        task: `choice` needs `options` and a letter among them; `fill_in` a number in `final` or
            `answer`; `program` a number in `final`; `classification` 2 to `MAX_LABELS` answers,
            which `label_text` may describe (`backend.contracts.label_texts`).

    Raises:
        JsonLinesError: a row breaks a rule, train or test rows are missing, or a question stands
            in two splits.
    """
    return parse_rows(
        (
            (number, _read_object(number, line))
            for number, line in enumerate(lines, start=1)
            if line.strip()
        ),
        task,
    )


def parse_rows(numbered: Iterable[tuple[int, dict[str, Any]]], task: TaskKind) -> list[Example]:
    """The same checks for rows that come from another format, such as a table.

    Args:
        numbered: line number for messages, and the row's fields; the rows may be changed.
        task: as for `parse_json_lines`.

    Raises:
        JsonLinesError: as for `parse_json_lines`.
    """
    rows = list(numbered)
    if not rows:
        raise JsonLinesError("the file has no rows. Give at least one for train and one for test.")
    if task is not TaskKind.CLASSIFICATION:
        for _, row in rows:
            row.pop("label_text", None)  # means nothing elsewhere, so it cannot be wrong
    _complete_splits(rows)
    check = _CHECKS[task]
    examples = [check(number, _read_example(number, row)) for number, row in rows]
    numbers = [number for number, _ in rows]
    _require_parts(examples)
    _require_disjoint_splits(numbers, examples)
    if task is TaskKind.CLASSIFICATION:
        _require_labels(examples)
        _require_described(numbers, examples)
    return examples


def _read_object(number: int, line: bytes) -> dict[str, Any]:
    try:
        row = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
    except UnicodeDecodeError as error:
        raise JsonLinesError(f"not UTF-8 ({error.reason}). Save as UTF-8.", line=number) from error
    except (ValueError, RecursionError) as error:  # also numbers of thousands of digits
        raise JsonLinesError(
            f"not valid JSON ({error}). Each line must be one whole JSON object.", line=number
        ) from error
    if not isinstance(row, dict):
        raise JsonLinesError(
            f"a JSON {type(row).__name__} where an object with `question` and `answer` is needed.",
            line=number,
        )
    return row


def _complete_splits(rows: list[tuple[int, dict[str, Any]]]) -> None:
    without = [number for number, row in rows if row.get("split") is None]
    if len(without) == len(rows):
        for _, row in rows:
            row["split"] = _split_by_hash(_question_key(row.get("question"), row.get("options")))
    elif without:
        raise JsonLinesError(
            "field `split` is missing while other rows have it. Give every row a split "
            f"({', '.join(SPLITS)}), or none.",
            line=without[0],
            field="split",
        )


def _split_by_hash(key: str) -> Split:
    percent = (
        int.from_bytes(hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()[:8]) % 100
    )
    return next(split for split, limit in _LAST_BUCKET if percent < limit)


def _question_key(question: object, options: object) -> str:
    """Equal for questions that differ only in case and spacing."""
    return " ".join(f"{question} {options or ''}".casefold().split())


def _read_example(number: int, row: dict[str, Any]) -> Example:
    for field in _TEXT_FIELDS:
        row[field] = _as_text(row.get(field))
    if isinstance(row.get("options"), list):
        row["options"] = [_as_text(option) for option in row["options"]]
    if isinstance(row["label_text"], str) and not row["label_text"].strip():
        row["label_text"] = None  # as an empty cell of a table
    for field in ("question", "answer"):
        if row[field] is None or (isinstance(row[field], str) and not row[field].strip()):
            raise JsonLinesError(
                f"field `{field}` is missing or empty. Every row needs it.",
                line=number,
                field=field,
            )
    try:
        return Example.model_validate(row)
    except ValidationError as error:
        first = error.errors()[0]
        field = str(first["loc"][0])
        raise JsonLinesError(
            f"field `{field}` is {str(first['input'])[:60]!r}: {first['msg']}.",
            line=number,
            field=field,
        ) from error


def _as_text(value: object) -> object:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return str(value) if is_number else value


def _check_fill_in(number: int, example: Example) -> Example:
    scored = example.answer if example.final is None else example.final
    if parse_number(scored) is None:
        field = "answer" if example.final is None else "final"
        raise JsonLinesError(
            f"field `{field}` is {scored[:60]!r}, which holds no number. Put the number to score "
            "into `final`.",
            line=number,
            field=field,
        )
    return example


def _check_program(number: int, example: Example) -> Example:
    if example.final is None or parse_number(example.final) is None:
        raise JsonLinesError(
            f"field `final` is {example.final!r}. A program is scored by its value: put the number "
            "that the program computes into `final`.",
            line=number,
            field="final",
        )
    return example


def _check_choice(number: int, example: Example) -> Example:
    options = example.options or []
    if not 2 <= len(options) <= len(ascii_uppercase):
        raise JsonLinesError(
            f"field `options` has {len(options)} entries. A choice needs 2 to "
            f"{len(ascii_uppercase)}.",
            line=number,
            field="options",
        )
    scored = (example.answer if example.final is None else example.final).strip()
    letters = ascii_uppercase[: len(options)]
    found = _LETTER.fullmatch(scored)
    letter = found.group(1).upper() if found else ""
    if not letter or letter not in letters:
        raise JsonLinesError(
            f"field `answer` is {scored[:60]!r}. It must be a letter from A to {letters[-1]}, one "
            "for each option.",
            line=number,
            field="answer",
        )
    return example.model_copy(update={"answer": letter, "final": None})


def _check_classification(number: int, example: Example) -> Example:
    return example.model_copy(update={"answer": example.answer.strip()})


def _refuse_images(number: int, example: Example) -> Example:
    raise JsonLinesError(
        "rows of text cannot hold pictures. Give a folder of pictures to the machine that trains, "
        "or choose another kind of task.",
        line=number,
    )


_CHECKS: dict[TaskKind, Callable[[int, Example], Example]] = {
    TaskKind.FILL_IN: _check_fill_in,
    TaskKind.CHOICE: _check_choice,
    TaskKind.PROGRAM: _check_program,
    TaskKind.CLASSIFICATION: _check_classification,
    TaskKind.IMAGE_CLASSIFICATION: _refuse_images,
}


def _require_parts(examples: list[Example]) -> None:
    present = {example.split for example in examples}
    for split in ("train", "test"):
        if split not in present:
            raise JsonLinesError(
                f"no row of {len(examples)} has split {split!r}. Add rows, or set `split` "
                "yourself: training and evaluation each need at least one.",
                field="split",
            )


def _require_disjoint_splits(numbers: list[int], examples: list[Example]) -> None:
    first: dict[str, tuple[int, Split]] = {}
    for number, example in zip(numbers, examples, strict=True):
        key = _question_key(example.question, example.options)
        earlier, split = first.setdefault(key, (number, example.split))
        if split != example.split:
            raise JsonLinesError(
                f"the question {example.question[:60]!r} is in split {example.split!r} here and in "
                f"{split!r} on line {earlier}. Keep it in one split, or accuracy means nothing.",
                line=number,
                field="split",
            )


def _require_labels(examples: list[Example]) -> None:
    labels = {example.answer for example in examples}
    if not 2 <= len(labels) <= MAX_LABELS:
        shown = ", ".join(sorted(labels)[:5])
        raise JsonLinesError(
            f"field `answer` takes {len(labels)} distinct values ({shown[:80]}). A classification "
            f"needs 2 to {MAX_LABELS}; for free text choose another kind of task.",
            field="answer",
        )


def _require_described(numbers: list[int], examples: list[Example]) -> None:
    try:
        described_labels(examples)
    except LabelTextsError as error:
        line = None if error.index is None else numbers[error.index]
        raise JsonLinesError(str(error), line=line, field="label_text") from error
