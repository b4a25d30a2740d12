"""Says which split a generated problem belongs to, once and for all."""

import hashlib

from backend.contracts.datasets import Split

_PARTS: tuple[tuple[Split, int], ...] = (("train", 60), ("validation", 80), ("test", 100))


def split_of(key: str) -> Split:
    """Split of the problem called `key`: 60 % train, 20 % validation, 20 % test.

    The hash alone decides, whatever the client, the seed or the format of the question, so a
    problem of the test part is never trained on by anybody, pre-training included.
    """
    percent = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8]) % 100
    return next(split for split, limit in _PARTS if percent < limit)
