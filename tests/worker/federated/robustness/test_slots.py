"""Robust rules over H2Tune's common slots, of which clients of smaller rank hold a part."""

import numpy as np
import pytest
import torch

from backend.contracts.robustness import Robustness
from tests.worker.federated.robustness.updates import (
    GLOBAL_RANK,
    H2TUNE,
    Draw,
    constant,
    federation,
    normal,
    slots_state,
    slots_update,
)
from worker.federated.client_round import take
from worker.federated.robustness.robust_strategy import with_robustness
from worker.federated.strategies.h2tune import H2Tune
from worker.federated.types import ClientUpdate, FederationSpec, ServerState, Tensors

MEDIAN = Robustness(rule="median")


def change(
    settings: Robustness, state: ServerState, members: FederationSpec, updates: list[ClientUpdate]
) -> dict[str, np.ndarray]:
    """What a round adds to the slots, by role."""
    strategy = with_robustness(H2Tune(H2TUNE), H2TUNE, settings)
    after, _ = strategy.aggregate(state, members, iter(updates))
    before = take("slots", state.tensors)
    return {
        role: (slots - before[role]).double().numpy()
        for role, slots in take("slots", after.tensors).items()
    }


def constants(*values: float) -> list[Draw]:
    return [constant(value) for value in values]


def test_an_entry_is_the_median_of_those_who_hold_it() -> None:
    """Ranks 2, 2, 4, 4, 4: all five hold the leading 2 x 2 block, three hold the rest."""
    members = federation(5, ranks=[2, 2, 4, 4, 4])
    state = slots_state(members)
    draws = constants(-50.0, 1.0, 2.0, 3.0, 90.0)
    updates = [slots_update(c, draw) for c, draw in zip(members.clients, draws, strict=True)]
    for added in change(MEDIAN, state, members, updates).values():
        expected = np.full((1, GLOBAL_RANK, GLOBAL_RANK), 3.0)  # of 2, 3, 90
        expected[:, :2, :2] = 2.0  # of -50, 1, 2, 3, 90
        np.testing.assert_allclose(added, expected, rtol=1e-5)


def test_a_client_that_lacks_a_role_or_fills_too_little_is_not_asked() -> None:
    members = federation(5)
    state = slots_state(members)
    draws = constants(1.0, 2.0, 3.0, 500.0, 500.0)
    updates = [slots_update(c, draw) for c, draw in zip(members.clients, draws, strict=True)]
    faint = [
        *updates[:3],
        *(slots_update(c, constant(500.0), coverage=0.05) for c in members.clients[3:]),
    ]
    for added in change(MEDIAN, state, members, faint).values():
        np.testing.assert_allclose(added[:, :2, :2], 2.0, rtol=1e-5)
        np.testing.assert_allclose(added[:, 2:, :], 0.0, atol=1e-6)


@pytest.mark.parametrize(
    "settings",
    [
        MEDIAN,
        Robustness(rule="trimmed_mean"),
        Robustness(rule="krum"),
        Robustness(rule="multi_krum"),
        Robustness(rule="norm_clipping"),
    ],
    ids=lambda settings: settings.rule,
)
def test_equal_updates_come_out_as_without_a_rule_bit_for_bit(settings: Robustness) -> None:
    members = federation(5)
    state = slots_state(members)
    updates = [slots_update(client, normal(4, scale=0.1)) for client in members.clients]
    strategy = with_robustness(H2Tune(H2TUNE), H2TUNE, settings)
    robust, _ = strategy.aggregate(state, members, updates)
    plain, _ = H2Tune(H2TUNE).aggregate(state, members, updates)
    for name, tensor in take("slots", plain.tensors).items():
        assert torch.equal(robust.tensors[f"slots/{name}"], tensor)


def test_krum_compares_clients_over_what_both_hold_per_entry() -> None:
    """The client of rank 4 agrees with the others where they meet, so its size does not count."""
    members = federation(5, ranks=[2, 2, 2, 4, 2])
    state = slots_state(members)
    draws = constants(1.1, 1.2, 0.9, 1.0, -40.0)
    updates = [slots_update(c, draw) for c, draw in zip(members.clients, draws, strict=True)]
    strategy = with_robustness(H2Tune(H2TUNE), H2TUNE, Robustness(rule="multi_krum"))
    _, report = strategy.aggregate(state, members, updates)
    assert {name: values["kept_share"] for name, values in report.clients.items()} == {
        "a": 1, "b": 1, "c": 1, "d": 1, "e": 0,
    }  # fmt: skip
    assert report.values["num_left_out"] == 1


def test_clipping_shortens_a_change_to_the_bound_and_leaves_short_ones() -> None:
    members = federation(2)
    state = slots_state(members)
    roles = len(members.clients[0].modules)
    long_norm = 30.0 * np.sqrt(4 * roles)
    updates = [
        slots_update(members.clients[0], constant(30.0)),
        slots_update(members.clients[1], constant(0.1)),
    ]
    bound = 0.5 * np.sqrt(4 * roles)  # every entry 0.5
    settings = Robustness(rule="norm_clipping", clip_norm=bound)
    for added in change(settings, state, members, updates).values():
        # 10 and 20 examples: (10 * 0.5 + 20 * 0.1) / 30
        np.testing.assert_allclose(added[:, :2, :2], 7 / 30, rtol=1e-5)
    _, report = with_robustness(H2Tune(H2TUNE), H2TUNE, settings).aggregate(state, members, updates)
    assert report.clients["a"]["kept_share"] == pytest.approx(bound / long_norm)
    assert report.clients["b"]["kept_share"] == 1
    assert report.values["num_clipped"] == 1


def test_masks_and_coverage_are_kept_as_sent() -> None:
    members = federation(3)
    state = slots_state(members)
    updates = [slots_update(client, normal(n)) for n, client in enumerate(members.clients)]
    strategy = with_robustness(H2Tune(H2TUNE), H2TUNE, MEDIAN)
    after, _ = strategy.aggregate(state, members, updates)
    plain, _ = H2Tune(H2TUNE).aggregate(state, members, updates)

    def masks(tensors: Tensors) -> Tensors:
        return take("mask", tensors)

    assert masks(after.tensors).keys() == masks(plain.tensors).keys() != set()
    assert all(torch.equal(m, masks(plain.tensors)[n]) for n, m in masks(after.tensors).items())
