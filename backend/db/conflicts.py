"""Unique constraints as answers for people."""

from collections.abc import Iterator
from contextlib import contextmanager

from psycopg.errors import UniqueViolation
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from backend.errors import ConflictError


@contextmanager
def unique(session: Session, message: str, code: str) -> Iterator[None]:
    """Flushes what the block adds; where that breaks a unique constraint, says `message`.

    The transaction goes on either way, without what the block added.

    Raises:
        ConflictError: with `message` and `code`.
    """
    try:
        with session.begin_nested():
            yield
    except IntegrityError as error:
        if not isinstance(error.orig, UniqueViolation):
            raise
        raise ConflictError(message, code=code) from error
