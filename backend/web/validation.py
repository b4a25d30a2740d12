"""What FastAPI says about a request that breaks a contract, as sentences with a remedy."""

import re
from collections.abc import Sequence
from typing import Any

from fastapi.exceptions import RequestValidationError

from backend.contracts.common import FieldError

SECRET_FIELDS = frozenset({"password", "enrolment_key"})
_QUOTED = re.compile(r"'[^']*'")  # the value of an enum's member, which is shown with its name
_MAX_SHOWN = 200  # characters of a refused value that an answer repeats


def field_errors(error: RequestValidationError) -> list[FieldError]:
    """One entry per wrong field: its path, the given value unless it is secret, what to do."""
    return [_field_error(entry, error.body) for entry in error.errors()]


def summary(errors: Sequence[FieldError]) -> str:
    """All field errors as one sentence each, the first ten of them."""
    sentences = [f"{error.field} {error.message}." for error in errors[:10]]
    if len(errors) > len(sentences):
        sentences.append(f"And {len(errors) - len(sentences)} more.")
    return " ".join(sentences)


def _field_error(entry: dict[str, Any], body: object) -> FieldError:
    path = _path(entry["loc"], body)
    context = entry.get("ctx", {})
    value = entry.get("input")
    kind = entry["type"]
    if kind == "union_tag_invalid":
        path = [*path, context["discriminator"].strip("'")]
        value = context["tag"]
        tags = ", ".join(_QUOTED.findall(context["expected_tags"]))
        message = f"must be one of {tags}, {value!r} was given"
    elif kind == "union_tag_not_found":
        path = [*path, context["discriminator"].strip("'")]
        value = None
        message = "is missing and decides which other fields there are"
    elif kind == "missing":
        value = None
        message = "is missing"
    elif kind == "extra_forbidden":
        value = None
        message = "is not a field of this request; check its spelling or leave it out"
    elif kind == "json_invalid":
        path, value = ["body"], None
        message = f"is not valid JSON: {context.get('error', 'unreadable')}"
    else:
        value = _shown(path, value)
        given = "" if value is None else f", {value!r} was given"
        message = _predicate(entry["msg"]) + given
    return FieldError(field=_spelled(path), value=_shown(path, value), message=_clean(message))


def _path(location: Sequence[str | int], body: object) -> list[str | int]:
    """The location without its source, and without the tags of unions that pydantic adds."""
    source, *steps = location
    if source != "body":
        return list(steps) or [source]
    path: list[str | int] = []
    current = body
    for index, step in enumerate(steps):
        found, current = _descend(current, step)
        if found or index == len(steps) - 1:  # else it is the tag of a union
            path.append(step)
    return path or ["body"]


def _descend(value: object, step: str | int) -> tuple[bool, object]:
    """Whether the value has this part, and the part; without it the value itself."""
    if isinstance(value, dict) and step in value:
        return True, value[step]
    if isinstance(value, list) and isinstance(step, int) and step < len(value):
        return True, value[step]
    return False, value


def _spelled(path: Sequence[str | int]) -> str:
    return _clean(".".join(str(step) for step in path))[:_MAX_SHOWN]


def _predicate(message: str) -> str:
    """Pydantic's sentence without its subject, which is the field's name here."""
    for start, ours in (("Input should ", "must "), ("Value error, ", "is refused: ")):
        if message.startswith(start):
            return ours + message.removeprefix(start)
    words = message.split(" ", 1)
    if len(words) == 2 and words[1].startswith("should "):
        return "must " + words[1].removeprefix("should ")
    return "is refused: " + message


def _shown(path: Sequence[str | int], value: object) -> str | int | float | bool | None:
    """A value as an answer may repeat it: no secret, nothing long, nothing that JSON lacks."""
    if SECRET_FIELDS.intersection(map(str, path)):
        return None
    if isinstance(value, bool | int) and abs(value) < 2**53:
        return value
    if isinstance(value, float) and value - value == 0:  # neither infinite nor NaN
        return value
    if isinstance(value, str | int | float):
        return _clean(str(value))[:_MAX_SHOWN]
    return None


def _clean(text: str) -> str:
    """The text without what JSON cannot carry, such as half of a surrogate pair."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
