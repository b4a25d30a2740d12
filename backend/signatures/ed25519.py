"""Verifying Ed25519 signatures."""

import base64

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey


def is_signed(public_key: str, signature: str, text: bytes) -> bool:
    """True when the owner of the key signed exactly this text.

    Args:
        public_key: base64 of 32 bytes.
        signature: base64 of 64 bytes.
        text: what is said to be signed.
    """
    key = Ed25519PublicKey.from_public_bytes(base64.b64decode(public_key))
    try:
        key.verify(base64.b64decode(signature), text)
    except InvalidSignature:
        return False
    return True
