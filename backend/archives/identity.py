"""Names and numbers of what is imported: as they were where nothing of it is here, else new."""

import hashlib
import re
import secrets
from collections.abc import Set
from uuid import UUID

_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_TIME = ((1 << 48) - 1) << 80
_RANDOM = ((1 << 12) - 1) << 64 | ((1 << 62) - 1)
_VERSION_AND_VARIANT = 0x7 << 76 | 0b10 << 62
MAX_NAME = 100


class Kept:
    """Every id stays."""

    is_copy = False

    def of(self, number: UUID) -> UUID:
        """The same."""
        return number

    def in_text(self, text: str) -> str:
        """The same."""
        return text


class Renumbered:
    """Every id gets a new one, always the same within one import, and as old as it was.

    Lists are sorted by id, which begins with the time at which it was made; so the time stays, and
    the rest is a hash.

    Args:
        told: ids that also stand within texts and JSON: those of what people see.
    """

    is_copy = True

    def __init__(self, told: Set[UUID]) -> None:
        self._told = told
        self._salt = secrets.token_bytes(16)

    def of(self, number: UUID) -> UUID:
        """The new id."""
        digest = hashlib.sha256(self._salt + number.bytes).digest()
        random = int.from_bytes(digest[:16]) & _RANDOM
        return UUID(int=(number.int & _TIME) | _VERSION_AND_VARIANT | random)

    def in_text(self, text: str) -> str:
        """The text with the new ids of what it tells of."""
        return _UUID.sub(self._replaced, text)

    def _replaced(self, match: re.Match[str]) -> str:
        number = UUID(match.group())
        return str(self.of(number)) if number in self._told else match.group()


Ids = Kept | Renumbered


def free_name(name: str, taken: Set[str]) -> str:
    """The name itself, or with the first number that makes it free, within 100 characters."""
    found, number = name, 1
    while found in taken:
        number += 1
        ending = f" ({number})"
        found = name[: MAX_NAME - len(ending)] + ending
    return found
