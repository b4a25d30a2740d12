"""Keys and masks that both sides must derive in the same way."""

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from worker.federated.privacy.keystream import KEY_BYTES, keystream
from worker.federated.privacy.secure_aggregation.errors import ProtocolError
from worker.federated.privacy.secure_aggregation.fixed_point import Residues


def agree(private_key: bytes, public_key: bytes, purpose: str) -> bytes:
    """The key that two clients have in common for one purpose: HKDF-SHA256 of X25519, 32 bytes.

    Raises:
        ProtocolError: the public key is not a point that keys can be agreed on with.
    """
    try:
        secret = X25519PrivateKey.from_private_bytes(private_key).exchange(
            X25519PublicKey.from_public_bytes(public_key)
        )
    except ValueError as error:
        raise ProtocolError(f"A public key of this round is unusable: {error}.") from error
    return HKDF(SHA256(), length=KEY_BYTES, salt=None, info=purpose.encode()).derive(secret)


def public_half(private_key: bytes) -> bytes:
    """The public key of a private one, 32 bytes each."""
    return X25519PrivateKey.from_private_bytes(private_key).public_key().public_bytes_raw()


def mask_purpose(round_tag: str) -> str:
    """What pairwise mask keys of a round are derived for."""
    return f"fedbraid mask\x1f{round_tag}"


def pairwise_mask(
    private_key: bytes, public_key: bytes, *, own_id: str, other_id: str, tag: str, count: int
) -> Residues:
    """What `own_id` adds for `other_id`; the two directions add up to zero.

    Raises:
        ProtocolError: the public key is unusable.
    """
    mask = expand(agree(private_key, public_key, mask_purpose(tag)), count)
    return mask if own_id < other_id else np.negative(mask)


def expand(seed: bytes, count: int) -> Residues:
    """Uniform integers modulo 2^32 from a seed that serves nothing else, (count,)."""
    return np.frombuffer(keystream(seed, 4 * count), dtype="<u4").astype(np.uint32, copy=False)
