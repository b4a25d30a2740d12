"""Pseudorandom bytes and noise from a key: what masks and protective noise are made of.

A generator for simulations, such as the Mersenne Twister, can be predicted from its output; who
predicts noise can subtract it. ChaCha20 cannot be predicted without its key.
"""

import hashlib
import math
from collections.abc import Callable

import torch
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20

KEY_BYTES = 32


def keystream(key: bytes, num_bytes: int) -> bytearray:
    """ChaCha20's stream of a key, from its start; one key must serve one purpose.

    Args:
        key: `KEY_BYTES` bytes that nobody else can guess.
        num_bytes: at most 2^38, which is where the cipher's counter ends.
    """
    stream = bytearray(num_bytes)
    Cipher(ChaCha20(key, bytes(16)), mode=None).encryptor().update_into(bytes(num_bytes), stream)
    return stream


def derive_key(key: bytes, purpose: str) -> bytes:
    """A key for one purpose; keys of other purposes tell nothing about it."""
    return hashlib.blake2b(purpose.encode(), key=key, digest_size=KEY_BYTES).digest()


def repeatable_random(root: bytes) -> Callable[[int], bytes]:
    """Random bytes that follow from a secret root: who asks in the same order gets the same.

    Args:
        root: `KEY_BYTES` bytes that nobody else can guess, used for nothing else.
    """
    encryptor = Cipher(ChaCha20(root, bytes(16)), mode=None).encryptor()

    def take(num_bytes: int) -> bytes:
        return encryptor.update(bytes(num_bytes))

    return take


def gaussian(key: bytes, count: int) -> torch.Tensor:
    """Independent standard normal values from a key, (count,) fp64, by Box and Muller.

    Each pair of values takes two uniform numbers of 53 bits. The largest possible value is 8.6,
    beyond which a normal one lies with probability 1e-17.
    """
    pairs = -(-count // 2)
    if pairs == 0:
        return torch.zeros(0, dtype=torch.float64)
    words = torch.frombuffer(keystream(key, 16 * pairs), dtype=torch.int64).view(2, pairs)
    uniform = ((words >> 11) & (2**53 - 1)).double()
    radius = torch.sqrt(-2 * torch.log((uniform[0] + 1) / 2**53))
    angle = uniform[1] * (2 * math.pi / 2**53)
    return torch.cat([radius * torch.cos(angle), radius * torch.sin(angle)])[:count]
