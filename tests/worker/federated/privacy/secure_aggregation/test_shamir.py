import random
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.federated.privacy.secure_aggregation.errors import ProtocolError
from worker.federated.privacy.secure_aggregation.shamir import PRIME, Share, combine, split


def test_the_field_is_prime() -> None:
    # Lucas-Lehmer: 2^p - 1 is prime if and only if it divides s(p - 2), with s(0) = 4 and
    # s(k + 1) = s(k)^2 - 2.
    value = 4
    for _ in range(519):
        value = (value * value - 2) % PRIME
    assert value == 0


def test_shares_lie_on_the_polynomial() -> None:
    drawn = iter([(7).to_bytes(66), (2).to_bytes(66)])  # secret 5 + 7 x + 2 x^2
    shares = split(b"\x05", 3, 4, lambda size: next(drawn))
    assert shares == [Share(1, 14), Share(2, 27), Share(3, 44), Share(4, 65)]
    assert combine(shares[1:], 1) == b"\x05"


@given(
    secret=st.binary(max_size=64),
    sizes=st.integers(1, 8).flatmap(lambda n: st.tuples(st.integers(1, n), st.just(n))),
    seed=st.integers(0, 2**32),
)
def test_any_threshold_of_shares_gives_the_secret_and_more_do_too(
    secret: bytes, sizes: tuple[int, int], seed: int
) -> None:
    threshold, num_shares = sizes
    draw = random.Random(seed)
    shares = split(secret, threshold, num_shares, draw.randbytes)
    some = draw.sample(shares, draw.randint(threshold, num_shares))
    assert combine(some, len(secret)) == secret


def test_fewer_shares_fit_every_secret() -> None:
    """Two shares of a threshold of three: for any secret there is a third that explains them."""
    shares = split(b"real", 3, 5, random.Random(0).randbytes)
    for pair in combinations(shares, 2):
        for secret in (b"real", b"fake", b"\x00\x00\x00\x00"):
            # The parabola through (0, secret) and the two shares, read at place 9.
            points = [Share(0, int.from_bytes(secret)), *pair]
            third = Share(9, lagrange(points, 9))
            assert combine([*pair, third], 4) == secret


def lagrange(points: list[Share], place: int) -> int:
    total = 0
    for one in points:
        term = one.value
        for other in points:
            if other is not one:
                term *= (place - other.index) * pow(one.index - other.index, -1, PRIME)
        total += term
    return total % PRIME


def test_too_few_shares_are_noticed() -> None:
    shares = split(bytes(32), 3, 5, random.Random(1).randbytes)
    with pytest.raises(ProtocolError, match="too few of them"):
        combine(shares[:2], 32)


@pytest.mark.parametrize("shares", [[], [Share(1, 2), Share(1, 2)]])
def test_a_place_counts_once(shares: list[Share]) -> None:
    with pytest.raises(ProtocolError, match="once"):
        combine(shares, 32)


@pytest.mark.parametrize(("threshold", "num_shares", "size"), [(0, 3, 1), (4, 3, 1), (2, 3, 65)])
def test_sizes_out_of_range_are_refused(threshold: int, num_shares: int, size: int) -> None:
    with pytest.raises(ProtocolError, match="cannot be shared"):
        split(bytes(size), threshold, num_shares, random.Random(2).randbytes)
