"""Dealing examples to clients: nothing lost, nothing twice, skew as asked."""

from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.federated.errors import InvalidConfigError
from worker.federated.tasks.client_splits import split_by_key, split_dirichlet, split_iid

POOL = list(range(1000))


def label(item: int) -> int:
    return item % 4


SPLITTERS: dict[str, Callable[[list[int], int, int], list[list[int]]]] = {
    "iid": split_iid,
    "dirichlet": lambda items, clients, seed: split_dirichlet(items, label, clients, 0.3, seed),
    "by_key": lambda items, clients, seed: split_by_key(items, label, max(clients, 4), seed),
}


@pytest.mark.parametrize("name", SPLITTERS)
@given(num_clients=st.integers(1, 40), seed=st.integers(0, 2**31))
def test_every_item_goes_to_exactly_one_client(name: str, num_clients: int, seed: int) -> None:
    hands = SPLITTERS[name](POOL, num_clients, seed)
    assert sorted(item for hand in hands for item in hand) == POOL
    assert all(hands)
    assert hands == SPLITTERS[name](POOL, num_clients, seed)


def test_iid_shares_differ_by_at_most_one() -> None:
    sizes = {len(hand) for hand in split_iid(POOL, 7, seed=3)}
    assert sizes == {142, 143}


def largest_share(concentration: float) -> float:
    hands = split_dirichlet(POOL, label, 10, concentration, seed=5)
    shares = [max(Counter(map(label, hand)).values()) / len(hand) for hand in hands]
    return sum(shares) / len(shares)


def test_a_small_concentration_skews_and_a_large_one_does_not() -> None:
    assert largest_share(0.1) > 0.7
    assert largest_share(1000) == pytest.approx(0.25, abs=0.06)


def test_groups_stay_whole() -> None:
    hands = split_by_key(POOL, label, 6, seed=1)
    assert [{label(item) for item in hand} for hand in hands] == [{0}, {1}, {2}, {3}, {0}, {1}]
    assert [len(hand) for hand in hands] == [125, 125, 250, 250, 125, 125]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: split_iid([1], 2, 0), "num_clients is 2 for 1 examples"),
        (lambda: split_iid([1], 0, 0), "num_clients is 0"),
        (lambda: split_dirichlet(POOL, label, 2, 0.0, 0), "concentration is 0.0"),
        (lambda: split_dirichlet(POOL, label, 2, float("nan"), 0), "concentration is nan"),
        (lambda: split_by_key(POOL, label, 3, 0), "num_clients is 3 for 4 groups"),
    ],
)
def test_impossible_splits_are_refused_by_name(call: Callable[[], object], words: str) -> None:
    with pytest.raises(InvalidConfigError, match=words):
        call()
