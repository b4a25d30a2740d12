"""Names and numbers of what is imported: as they were where nothing of it is here, else new."""

import hashlib
import re
import secrets
from collections.abc import Set
from uuid import UUID

_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_NEW_BYTES = 5
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
    """Every id gets a new one, always the same within one import, and in the same order.

    Lists are sorted by id, which begins with the time at which it was made. So only the last five
    bytes, which were random, change; they become a hash.

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
        return UUID(bytes=number.bytes[:-_NEW_BYTES] + digest[:_NEW_BYTES])

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
