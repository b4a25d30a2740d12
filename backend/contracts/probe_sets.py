"""Probe texts: the rules of a federation's own ones, how they are read and how they are stored.

Every client reads the same public texts with its base model before training, so that what clients
share means the same in each model (gauge `probe` of H2Tune). The backend refuses a bad upload with
this page before anything is stored, and the worker reads the stored bytes with it.
"""

import json
from collections.abc import Callable, Iterable
from datetime import datetime
from enum import StrEnum

from pydantic import Field

from backend.contracts.common import Answer

MIN_TEXTS = 50
MAX_TEXTS = 2_000
MAX_CHARACTERS = 500
MAX_BODY_BYTES = 16 * 2**20
"""More than `MAX_TEXTS` of the longest texts take, however they are escaped."""

NUM_BUILT_IN = 600
"""Texts that the product makes itself for the kinds of tasks of a federation."""

NUM_EXAMPLES = 5

JSON_LINES = "application/x-ndjson"
PLAIN_TEXT = "text/plain"


class ProbeSource(StrEnum):
    """Where the texts come from."""

    BUILT_IN = "built_in"  # made for the kinds of tasks of the members, the same everywhere
    UPLOADED = "uploaded"


class ProbeSet(Answer):
    """The probe texts of a federation; what is empty does not exist for built-in ones."""

    source: ProbeSource
    num_texts: int
    sha256: str | None = Field(description="of the stored file; empty: built in")
    size_bytes: int | None
    uploaded_at: datetime | None
    uploaded_by: str | None = Field(
        description="name of the user; empty: built in, or imported with the federation"
    )
    examples: list[str] = Field(description=f"the first {NUM_EXAMPLES} texts; none if built in")


class ProbeSetError(ValueError):
    """The texts cannot be used; names line, value and remedy.

    Attributes:
        line: from 1; None: the file as a whole.
        value: what is wrong, shortened; None: nothing that can be shown.
    """

    def __init__(self, problem: str, *, line: int | None = None, text: str | None = None) -> None:
        self.line = line
        self.value = None if text is None else repr(text[:60])[1:-1]
        where = "" if line is None else f"Line {line}: "
        super().__init__(where + ("" if text is None else f"'{self.value}' ") + problem)


def parse_probe_set(lines: Iterable[bytes], media_type: str) -> list[str]:
    """All texts of a file in their order, without white space around them.

    Blank lines are passed by, and so are other fields than `text`.

    Args:
        lines: as a binary stream gives them.
        media_type: `text/plain`: a line is a text; others: a line is a JSON object with `text`.

    Raises:
        ProbeSetError: too few, too many, a text that is empty, too long or there twice, or a line
            that cannot be read.
    """
    read = _READERS[media_type]
    numbers: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        text = _checked(number, read(number, _decoded(number, line)))
        earlier = numbers.setdefault(text, number)
        if earlier != number:
            raise ProbeSetError(
                f"stands on line {earlier} already. Keep it once.", line=number, text=text
            )
        if len(numbers) > MAX_TEXTS:
            raise ProbeSetError(
                f"this is text {len(numbers):,}, and {MAX_TEXTS:,} are the most. Leave some out: "
                "400 to 1,000 are enough.",
                line=number,
            )
    if len(numbers) < MIN_TEXTS:
        raise ProbeSetError(
            f"The file has {len(numbers)} texts, and {MIN_TEXTS} are the fewest. Add some: 400 to "
            "1,000 are good."
        )
    return list(numbers)


def encode_probe_set(texts: Iterable[str]) -> bytes:
    """The stored form, JSON lines: equal texts in equal order give equal bytes."""
    return b"".join(
        json.dumps({"text": text}, ensure_ascii=False).encode() + b"\n" for text in texts
    )


def decode_probe_set(content: bytes) -> list[str]:
    """Texts from their stored form.

    Raises:
        ProbeSetError: these bytes are none.
    """
    return parse_probe_set(content.split(b"\n"), JSON_LINES)


def _decoded(number: int, line: bytes) -> str:
    try:
        return line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise ProbeSetError(f"not UTF-8 ({error.reason}). Save as UTF-8.", line=number) from error


def _from_json(number: int, line: str) -> str:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:  # also numbers of thousands of digits
        raise ProbeSetError(
            'is not valid JSON. Write {"text": "..."} on each line, or send one text per line as '
            f"{PLAIN_TEXT}.",
            line=number,
            text=line.strip(),
        ) from error
    text = row.get("text") if isinstance(row, dict) else None
    if not isinstance(text, str):
        raise ProbeSetError('has no text. Write {"text": "..."}.', line=number, text=line.strip())
    return text


def _from_plain(_number: int, line: str) -> str:
    return line


_READERS: dict[str, Callable[[int, str], str]] = {
    JSON_LINES: _from_json,
    "application/jsonl": _from_json,
    PLAIN_TEXT: _from_plain,
}
MEDIA_TYPES = tuple(_READERS)


def _checked(number: int, text: str) -> str:
    text = text.strip()
    problem = _problem(text)
    if problem:
        raise ProbeSetError(problem, line=number, text=text)
    return text


def _problem(text: str) -> str | None:
    """What is wrong with a text, and the remedy; None: nothing."""
    if not text:
        return "is an empty text. Leave the line out."
    if len(text) > MAX_CHARACTERS:
        return (
            f"has {len(text):,} characters, and {MAX_CHARACTERS} are the most. Shorten it or split "
            "it into sentences."
        )
    if "\x00" in text:
        return "holds a NUL character. Remove it."
    if any("\ud800" <= character <= "\udfff" for character in text):
        return "holds half of a character (a lone surrogate). Remove it."
    return None
