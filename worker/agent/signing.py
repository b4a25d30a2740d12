"""The key with which a client signs what it hands in; its private half stays on this machine."""

import base64
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from backend.contracts.signatures import fingerprint_of
from worker.agent.errors import AgentError
from worker.private_files import write_file


@dataclass(frozen=True, slots=True)
class Signer:
    """An Ed25519 key (RFC 8032)."""

    key: Ed25519PrivateKey

    @classmethod
    def fresh(cls) -> Self:
        """A new key."""
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def load(cls, path: Path) -> Self | None:
        """The key in a file; None: there is no such file.

        Raises:
            AgentError: the file holds something else.
        """
        try:
            key = load_pem_private_key(path.read_bytes(), password=None)
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise AgentError(f"{path} holds no private key in PEM format: {error}.") from error
        if not isinstance(key, Ed25519PrivateKey):
            raise AgentError(f"{path} holds no Ed25519 key. Move it away to have a new one made.")
        return cls(key)

    def save(self, path: Path) -> None:
        """Writes the key, readable by its owner only (PKCS #8, PEM)."""
        pem = self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        write_file(path, pem)

    @property
    def public_key(self) -> str:
        """Base64 of 32 bytes."""
        return base64.b64encode(self.key.public_key().public_bytes_raw()).decode()

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the public key."""
        return fingerprint_of(self.public_key)

    def sign(self, text: bytes) -> str:
        """Base64 of the 64 bytes of a signature."""
        return base64.b64encode(self.key.sign(text)).decode()
