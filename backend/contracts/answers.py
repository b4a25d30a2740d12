"""Reads the number out of an answer; validation of uploads and scoring agree through it."""

import re

_NUMBER = re.compile(r"[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|[-+]?\.\d+")
_FINAL_MARKER = re.compile(r"answer is", re.IGNORECASE)


def parse_number(text: str) -> float | None:
    """First number after "answer is" if the text says so, else its first number, if any.

    Thousands may be separated by commas: "The answer is $1,250.0" gives 1250.0.
    """
    marker = _FINAL_MARKER.search(text)
    found = _NUMBER.search(text, marker.end() if marker else 0)
    return float(found.group().replace(",", "")) if found else None
