"""Deals one pool of examples out to clients: every example goes to exactly one of them."""

from collections.abc import Callable, Hashable, Sequence
from typing import TypeVar

import numpy as np

from worker.federated.errors import InvalidConfigError

Item = TypeVar("Item")


def split_iid(items: Sequence[Item], num_clients: int, seed: int) -> list[list[Item]]:
    """Equal shares at random; sizes differ by at most one.

    Args:
        items: the pool, at least one per client.
        num_clients: 1 or more.
        seed: the same seed deals the same hands.

    Raises:
        InvalidConfigError: fewer items than clients, or no client.
    """
    _require_enough(items, num_clients)
    order = np.random.default_rng(seed).permutation(len(items))
    return [[items[index] for index in sorted(hand)] for hand in np.array_split(order, num_clients)]


def split_dirichlet(
    items: Sequence[Item],
    label_of: Callable[[Item], Hashable],
    num_clients: int,
    concentration: float,
    seed: int,
) -> list[list[Item]]:
    """Skewed label shares: for each label, client shares are drawn from Dirichlet(concentration).

    No client stays empty: one that got nothing receives an item of the client with most.

    Args:
        items: the pool, at least one per client.
        label_of: gives the label that is skewed.
        num_clients: 1 or more.
        concentration: above 0. 100 is close to IID, 0.5 is the usual skew, 0.1 gives most clients
            one label.
        seed: the same seed deals the same hands.

    Raises:
        InvalidConfigError: a value is out of its range.

    Source: Hsu, Qi, Brown, 2019 (arXiv 1909.06335), drawn per label as in later work.
    """
    _require_enough(items, num_clients)
    if not concentration > 0:
        raise InvalidConfigError(
            f"concentration is {concentration}: it must be above 0; 0.5 is a usual skew."
        )
    source = np.random.default_rng(seed)
    hands: list[list[int]] = [[] for _ in range(num_clients)]
    for indices in _by_key(items, label_of).values():
        shuffled = source.permutation(indices)
        shares = source.dirichlet([concentration] * num_clients)
        cuts = np.round(np.cumsum(shares)[:-1] * len(shuffled)).astype(int)
        for hand, part in zip(hands, np.split(shuffled, cuts), strict=True):
            hand.extend(part.tolist())
    while empty := [hand for hand in hands if not hand]:
        empty[0].append(max(hands, key=len).pop())
    return [[items[index] for index in sorted(hand)] for hand in hands]


def split_by_key(
    items: Sequence[Item], key_of: Callable[[Item], Hashable], num_clients: int, seed: int
) -> list[list[Item]]:
    """Whole groups, such as tasks or sources: each client gets items of one group only.

    Clients take the groups in turn; several clients of one group share it at random.

    Args:
        items: the pool.
        key_of: gives the group of an item.
        num_clients: at least the number of groups.
        seed: the same seed deals the same hands.

    Raises:
        InvalidConfigError: fewer clients than groups, or a group with too few items.
    """
    groups = list(_by_key(items, key_of).values())
    if not 0 < len(groups) <= num_clients:
        raise InvalidConfigError(
            f"num_clients is {num_clients} for {len(groups)} groups: give at least one client to "
            "each group."
        )
    hands = []
    for position in range(num_clients):
        group = groups[position % len(groups)]
        sharers = len(range(position % len(groups), num_clients, len(groups)))
        members = [items[index] for index in group]
        hands.append(split_iid(members, sharers, seed)[position // len(groups)])
    return hands


def _by_key(items: Sequence[Item], key_of: Callable[[Item], Hashable]) -> dict[Hashable, list[int]]:
    groups: dict[Hashable, list[int]] = {}
    for index, item in enumerate(items):
        groups.setdefault(key_of(item), []).append(index)
    return groups


def _require_enough(items: Sequence[Item], num_clients: int) -> None:
    if not 1 <= num_clients <= len(items):
        raise InvalidConfigError(
            f"num_clients is {num_clients} for {len(items)} examples: it must be at least 1, and "
            "every client needs an example."
        )
