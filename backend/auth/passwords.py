"""Passwords: argon2id, and the same time for every wrong answer."""

from threading import BoundedSemaphore

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerifyMismatchError

_HASHER = PasswordHasher()  # argon2id with the parameters of RFC 9106, section 4 (low memory)
_SLOTS = BoundedSemaphore(4)  # a hash takes 64 MiB: many sign-ins at once wait for each other
_NOBODY = _HASHER.hash("nobody has this password")


def hash_password(password: str) -> str:
    """A salted argon2id hash that carries its own parameters."""
    with _SLOTS:
        return _HASHER.hash(password)


def password_matches(password: str, password_hash: str | None) -> bool:
    """True when the password has this hash.

    Args:
        password: what was typed.
        password_hash: of the user; None for an unknown user, which costs as much time as a wrong
            password, so that nobody can find out who exists.
    """
    try:
        with _SLOTS:
            _HASHER.verify(password_hash or _NOBODY, password)
    except (VerifyMismatchError, InvalidHashError):
        return False
    return password_hash is not None
