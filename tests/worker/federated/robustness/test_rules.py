"""Robust rules against NumPy, on what FFA-LoRA's clients send."""

import itertools

import numpy as np
import pytest
import torch

from backend.contracts.robustness import Robustness
from tests.worker.federated.robustness.updates import (
    FFA,
    constant,
    federation,
    ffa_state,
    ffa_update,
    flat,
    normal,
)
from worker.federated.errors import InvalidUpdateError, UpdateTooLargeError
from worker.federated.robustness import rules
from worker.federated.robustness.robust_strategy import with_robustness
from worker.federated.strategies.ffa_lora import FfaLora
from worker.federated.types import AggregationReport, ClientUpdate, FederationSpec, ServerState

RULES = [
    Robustness(rule="trimmed_mean", trim_share=0.3),
    Robustness(rule="median"),
    Robustness(rule="krum", num_hostile=1),
    Robustness(rule="multi_krum", num_hostile=1),
    Robustness(rule="norm_clipping"),
    Robustness(rule="norm_clipping", clip_norm=0.5),
]
IDS = [f"{rule.rule}-{rule.clip_norm}" for rule in RULES]


def aggregate(
    settings: Robustness,
    state: ServerState,
    members: FederationSpec,
    updates: list[ClientUpdate],
) -> tuple[np.ndarray, AggregationReport]:
    """How B changes, in one row, and the report."""
    strategy = with_robustness(FfaLora(FFA), FFA, settings)
    after, report = strategy.aggregate(state, members, iter(updates))
    return flat(after.tensors) - flat(state.tensors), report


def changes_of(updates: list[ClientUpdate], state: ServerState) -> np.ndarray:
    return np.stack([flat(update.shared) - flat(state.tensors) for update in updates])


def by_numpy(settings: Robustness, changes: np.ndarray, examples: np.ndarray) -> np.ndarray:
    """The rules once more, written down from their papers."""
    num = len(changes)
    match settings.rule:
        case "median":
            return np.median(changes, axis=0)
        case "trimmed_mean":
            cut = int(settings.trim_share * num)
            return np.sort(changes, axis=0)[cut : num - cut].mean(axis=0)
        case "norm_clipping":
            norms = np.linalg.norm(changes, axis=1)
            bound = settings.clip_norm or np.median(norms)
            shorter = changes * np.minimum(1, bound / norms)[:, None]
            return np.average(shorter, axis=0, weights=examples)
    squared = ((changes[:, None] - changes[None]) ** 2).sum(-1)
    near = np.sort(squared, axis=1)[:, 1 : num - settings.num_hostile - 1]  # without itself
    order = np.argsort(near.sum(1))
    count = 1 if settings.rule == "krum" else num - settings.num_hostile
    return changes[order[:count]].mean(axis=0)


@pytest.mark.parametrize("settings", RULES, ids=IDS)
@pytest.mark.parametrize("num_clients", [5, 6])
def test_a_rule_is_what_its_paper_says(settings: Robustness, num_clients: int) -> None:
    members = federation(num_clients)
    state = ffa_state(members)
    updates = [
        ffa_update(client, state, normal(number, scale=0.1 * (number + 1)))
        for number, client in enumerate(members.clients)
    ]
    found, _ = aggregate(settings, state, members, updates)
    examples = np.array([update.num_examples for update in updates])
    expected = by_numpy(settings, changes_of(updates, state), examples)
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("settings", RULES[:5], ids=IDS[:5])
def test_equal_updates_come_out_as_without_a_rule_bit_for_bit(settings: Robustness) -> None:
    members = federation(5)
    state = ffa_state(members)
    updates = [ffa_update(client, state, normal(7)) for client in members.clients]
    strategy = with_robustness(FfaLora(FFA), FFA, settings)
    robust, _ = strategy.aggregate(state, members, updates)
    plain, _ = FfaLora(FFA).aggregate(state, members, updates)
    assert all(torch.equal(robust.tensors[name], plain.tensors[name]) for name in plain.tensors)


@pytest.mark.parametrize("settings", RULES, ids=IDS)
def test_it_does_not_matter_which_client_is_called_what(settings: Robustness) -> None:
    members = federation(5)
    state = ffa_state(members)
    drawn = [ffa_update(members.clients[0], state, normal(n)).shared for n in range(5)]
    results = []
    for order in ([0, 1, 2, 3, 4], [3, 0, 4, 2, 1]):
        updates = [
            ClientUpdate(client.client_id, 1, 10, drawn[place], {}, {})
            for client, place in zip(members.clients, order, strict=True)
        ]
        results.append(aggregate(settings, state, members, updates)[0])
    np.testing.assert_allclose(results[0], results[1], atol=1e-6)


def attack(kind: str, honest: np.ndarray) -> np.ndarray:
    """The change of one hostile client, who knows the mean of the honest ones."""
    source = np.random.default_rng(99)
    match kind:
        case "sign_flip":
            return -100 * honest.mean(axis=0)
        case "noise":
            return source.normal(scale=50, size=honest.shape[1])
        case _:
            return np.full(honest.shape[1], 30.0)


@pytest.mark.parametrize("kind", ["sign_flip", "noise", "colluders"])
@pytest.mark.parametrize(
    "settings",
    [
        Robustness(rule="trimmed_mean", trim_share=0.3),
        Robustness(rule="median"),
        Robustness(rule="krum", num_hostile=2),
        Robustness(rule="multi_krum", num_hostile=2),
        Robustness(rule="norm_clipping"),
    ],
    ids=lambda settings: settings.rule,
)
def test_hostile_clients_move_the_mean_and_not_the_rule(settings: Robustness, kind: str) -> None:
    """Five honest clients around one direction, and two hostile ones with most examples."""
    members = federation(7)
    state = ffa_state(members)
    common = normal(1)
    source = np.random.default_rng(5)
    size = flat(state.tensors).size
    direction = common((size,))
    honest = direction + source.normal(scale=0.2, size=(5, size))

    def row(values: np.ndarray):
        parts = iter(np.split(values, np.cumsum([t.numel() for _, t in
                     sorted(state.tensors.items())])))  # fmt: skip
        return lambda shape: next(parts).reshape(shape)

    updates = []
    for number, client in enumerate(members.clients):
        values = honest[number] if number < 5 else attack(kind, honest)
        ordered = ServerState(dict(sorted(state.tensors.items())), state.meta)
        updates.append(ffa_update(client, ordered, row(values)))
    plain, _ = aggregate(Robustness(), state, members, updates)
    robust, report = aggregate(settings, state, members, updates)
    center, radius = honest.mean(axis=0), np.linalg.norm(honest - honest.mean(axis=0), axis=1).max()
    assert np.linalg.norm(plain - center) > 10 * radius
    kept = [values["kept_share"] for values in report.clients.values()]
    match settings.rule:
        case "trimmed_mean" | "median":  # inside the honest clients' range, number by number
            low, high = honest.min(axis=0), honest.max(axis=0)
            assert np.all(robust >= low - 1e-5)
            assert np.all(robust <= high + 1e-5)
            assert max(kept[5:]) < min(kept[:5])
        case "krum" | "multi_krum":
            assert np.linalg.norm(robust - center) <= radius
            assert kept[5:] == [0, 0]
            assert sum(kept) == (1 if settings.rule == "krum" else 5)
        case _:  # no client moves the result by more than its weight times the bound
            bound = np.median([np.linalg.norm(c) for c in changes_of(updates, state)])
            share = sum(u.num_examples for u in updates[5:]) / sum(u.num_examples for u in updates)
            honest_part = np.average(honest, axis=0, weights=[10, 20, 30, 40, 50]) * (1 - share)
            assert np.linalg.norm(robust - honest_part) <= share * bound * 1.2
            assert max(kept[5:]) < 0.2


def test_colluders_beyond_what_was_stated_are_not_withstood() -> None:
    """A rule promises what it says and no more: three equal colluders of seven beat Krum's one."""
    members = federation(7)
    state = ffa_state(members)
    draws = [normal(number) for number in range(3)] + [constant(30.0)] * 4
    updates = [
        ffa_update(client, state, draw) for client, draw in zip(members.clients, draws, strict=True)
    ]
    robust, _ = aggregate(Robustness(rule="krum", num_hostile=1), state, members, updates)
    np.testing.assert_allclose(robust, 30.0, rtol=1e-5)


def test_trimming_goes_by_chunks_and_krum_too(monkeypatch: pytest.MonkeyPatch) -> None:
    members = federation(5)
    state = ffa_state(members)
    updates = [ffa_update(c, state, normal(n)) for n, c in enumerate(members.clients)]
    for settings in (Robustness(rule="median"), Robustness(rule="krum")):
        whole = aggregate(settings, state, members, updates)[0]
        with monkeypatch.context() as patch:
            patch.setattr(rules, "CHUNK", 37)
            assert np.array_equal(aggregate(settings, state, members, updates)[0], whole)


@pytest.mark.parametrize("values", list(itertools.permutations([1.0, 2.0, 5.0, 9.0], 4))[::7])
def test_the_median_of_an_even_count_is_between_the_middle_two(values: tuple[float, ...]) -> None:
    assert rules.median(values) == 3.5


def test_too_few_updates_for_a_rule_are_refused() -> None:
    members = federation(4)
    state = ffa_state(members)
    updates = [ffa_update(client, state, normal(1)) for client in members.clients]
    with pytest.raises(InvalidUpdateError, match="krum needs 5 updates in a round, and only 4"):
        aggregate(Robustness(rule="krum"), state, members, updates)


def test_a_change_beyond_the_bound_is_refused_before_the_next_is_read() -> None:
    members = federation(3)
    state = ffa_state(members)
    size = flat(state.tensors).size
    draws = [constant(1.0), constant(2.0), constant(1.0)]
    updates = [
        ffa_update(client, state, draw) for client, draw in zip(members.clients, draws, strict=True)
    ]
    given: list[str] = []

    def stream():
        for update in updates:
            given.append(update.client_id)
            yield update

    strategy = with_robustness(FfaLora(FFA), FFA, Robustness(max_update_norm=1.5 * size**0.5))
    with pytest.raises(UpdateTooLargeError, match=f"norm {2 * size**0.5:.4g}, and max_update_norm"):
        strategy.aggregate(state, members, stream())
    assert given == ["a", "b"]


def test_without_settings_the_strategy_is_itself() -> None:
    strategy = FfaLora(FFA)
    assert with_robustness(strategy, FFA, Robustness()) is strategy
