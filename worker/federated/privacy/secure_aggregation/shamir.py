"""Shamir's secret sharing: any `threshold` shares give the secret, fewer give nothing at all.

Shamir, How to Share a Secret, 1979. The secret is the value at 0 of a random polynomial of degree
threshold - 1 over a prime field; share k is its value at k.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from worker.federated.privacy.secure_aggregation.errors import ProtocolError

PRIME = 2**521 - 1
"""A Mersenne prime, larger than any secret of `MAX_SECRET_BYTES`."""

MAX_SECRET_BYTES = 64
SHARE_BYTES = 66  # of one value

RandomBytes = Callable[[int], bytes]
"""So many bytes that nobody can predict, such as `secrets.token_bytes`."""


@dataclass(frozen=True, slots=True)
class Share:
    """The polynomial's value at one place; in [0, PRIME)."""

    index: int  # from 1
    value: int


def split(secret: bytes, threshold: int, num_shares: int, random: RandomBytes) -> list[Share]:
    """Shares 1 to `num_shares` of a secret.

    Args:
        secret: at most `MAX_SECRET_BYTES` bytes.
        threshold: how many shares give the secret back, from 1 to `num_shares`.
        num_shares: how many to make.
        random: where the other coefficients come from.

    Raises:
        ProtocolError: a size is out of its range.
    """
    if len(secret) > MAX_SECRET_BYTES or not 1 <= threshold <= num_shares:
        raise ProtocolError(
            f"A secret of {len(secret)} bytes cannot be shared {threshold} of {num_shares}: at "
            f"most {MAX_SECRET_BYTES} bytes, and a threshold from 1 to the number of shares."
        )
    coefficients = [int.from_bytes(secret), *(_element(random) for _ in range(threshold - 1))]
    return [Share(index, _value(coefficients, index)) for index in range(1, num_shares + 1)]


def combine(shares: Sequence[Share], num_bytes: int) -> bytes:
    """The secret of `num_bytes` bytes that enough shares belong to (Lagrange at 0).

    Too few shares, or wrong ones, give another value: the caller checks the secret where it can.

    Raises:
        ProtocolError: a share came twice or none came, or what they give is no secret of that size.
    """
    points = {share.index: share.value for share in shares}
    if not points or len(points) < len(shares):
        raise ProtocolError(f"{len(shares)} shares of {len(points)} places: each must come once.")
    secret = 0
    for index, value in points.items():
        above, below = 1, 1
        for other in points:
            if other != index:
                above = above * other % PRIME
                below = below * (other - index) % PRIME
        secret = (secret + value * above * pow(below, -1, PRIME)) % PRIME
    if secret >= 256**num_bytes:
        raise ProtocolError("These shares belong to no secret: too few of them, or damaged ones.")
    return secret.to_bytes(num_bytes)


def _element(random: RandomBytes) -> int:
    """A uniform element of the field."""
    while True:
        value = int.from_bytes(random(SHARE_BYTES)) & PRIME
        if value < PRIME:
            return value


def _value(coefficients: list[int], place: int) -> int:
    """The polynomial at a place, by Horner's rule."""
    result = 0
    for coefficient in reversed(coefficients):
        result = (result * place + coefficient) % PRIME
    return result
