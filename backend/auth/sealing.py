"""Small secrets that must be read again, such as those of second factors: sealed, never plain."""

import base64
import contextlib
import os
import secrets
from functools import lru_cache
from pathlib import Path

from cryptography.fernet import Fernet, InvalidToken
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from backend.settings import Settings


class SealError(Exception):
    """A sealed value was made with another key."""


class Seal:
    """Encrypts and authenticates with one key (Fernet: AES-128-CBC and HMAC-SHA256)."""

    def __init__(self, key: bytes) -> None:
        derived = HKDF(SHA256(), 32, salt=None, info=b"fedbraid/sealing").derive(key)
        self._fernet = Fernet(base64.urlsafe_b64encode(derived))

    def close(self, value: str) -> str:
        """The sealed value, as text."""
        return self._fernet.encrypt(value.encode()).decode()

    def open(self, sealed: str) -> str:
        """What was sealed.

        Raises:
            SealError: with another key.
        """
        try:
            return self._fernet.decrypt(sealed.encode()).decode()
        except InvalidToken as error:
            raise SealError(
                "A stored secret cannot be read: FEDBRAID_SECRET_KEY is not the one with which it "
                "was sealed. Put the old key back."
            ) from error


def seal_of(settings: Settings) -> Seal:
    """The platform's seal: with the configured key, else with one kept in its home folder."""
    if settings.secret_key is not None:
        return _seal(settings.secret_key.get_secret_value().encode())
    return _seal(_own_key(settings.home / "secret-key"))


@lru_cache
def _seal(key: bytes) -> Seal:
    return Seal(key)


def _own_key(path: Path) -> bytes:
    """The key in a file that only we can read; made by whoever comes first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}-{secrets.token_hex(8)}")
    fresh.touch(mode=0o600)
    fresh.write_text(secrets.token_urlsafe(32), encoding="utf-8")
    # Atomic, and never over an existing one: that is the one that counts.
    with contextlib.suppress(FileExistsError):
        os.link(fresh, path)
    fresh.unlink()
    return path.read_bytes()
