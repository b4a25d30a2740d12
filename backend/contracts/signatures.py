"""What clients sign, with which keys, and what is needed to verify it later.

A signature is Ed25519 (RFC 8032) over a short text. The text names the run, the client, the round,
the attempt and the SHA-256 of the update, so that a signature fits nothing else.
"""

import base64
import binascii
import hashlib
from datetime import datetime
from typing import Annotated
from uuid import UUID

from pydantic import AfterValidator, ConfigDict, Field

from backend.contracts.common import Answer, Request

KEY_BYTES = 32
SIGNATURE_BYTES = 64

SIGNATURE_MISSING = "signature_missing"
"""Code of the 422 that says: this client's updates count only with its signature."""

SIGNATURE_INVALID = "signature_invalid"
"""Code of the 422 that says: the client's present key did not sign this update."""


def update_text(
    run_id: UUID, client_id: UUID, round_number: int, attempt: int, sha256: str
) -> bytes:
    """What a client signs when it hands in an update.

    Args:
        run_id: which run.
        client_id: who sends it.
        round_number: from 1, or 0 where models agree on codes before round 1.
        attempt: the lease's `fence`.
        sha256: of the bytes that were uploaded.
    """
    lines = [
        "fedbraid update v1",
        f"run {run_id}",
        f"client {client_id}",
        f"round {round_number}",
        f"attempt {attempt}",
        f"sha256 {sha256}",
    ]
    return "\n".join(lines).encode()


def rotation_text(client_id: UUID, new_fingerprint: str) -> bytes:
    """What a client signs with its present key to let another one follow."""
    return f"fedbraid key v1\nclient {client_id}\nnext {new_fingerprint}".encode()


def fingerprint_of(public_key: str) -> str:
    """SHA-256 of the 32 bytes of a public key, as 64 hexadecimal digits."""
    return hashlib.sha256(base64.b64decode(public_key)).hexdigest()


def _exact_base64(text: str, num_bytes: int) -> str:
    try:
        decoded = base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise ValueError("must be base64") from error
    if len(decoded) != num_bytes or base64.b64encode(decoded).decode() != text:
        raise ValueError(f"must be base64 of {num_bytes} bytes")
    return text


PublicKey = Annotated[
    str,
    Field(pattern=r"^[A-Za-z0-9+/]{43}=$", description="Ed25519, base64 of 32 bytes"),
    AfterValidator(lambda text: _exact_base64(text, KEY_BYTES)),
]
Signature = Annotated[
    str,
    Field(pattern=r"^[A-Za-z0-9+/]{86}==$", description="Ed25519, base64 of 64 bytes"),
    AfterValidator(lambda text: _exact_base64(text, SIGNATURE_BYTES)),
]


class SigningKeyPut(Request):
    """The key that verifies a client's updates from now on."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"public_key": "A" * 43 + "="}]})

    public_key: PublicKey
    signature: Signature | None = Field(
        None, description="of the present key over `rotation_text`; empty for the first key"
    )


class SigningKey(Answer):
    """A key of a client."""

    id: UUID
    client_id: UUID
    public_key: str
    fingerprint: str = Field(description="SHA-256 of the key's 32 bytes")
    created_at: datetime
    retired_at: datetime | None = Field(description="it verifies no update after that")


class SignedUpdate(Answer):
    """All that is needed to verify who made an accepted update, without trusting the platform."""

    client_update_id: UUID
    client_id: UUID
    client_name: str
    round_number: int
    attempt: int
    sha256: str = Field(description="of the update")
    signed_text: str = Field(description="what was signed, in UTF-8")
    signature: str
    fingerprint: str
    public_key: str
