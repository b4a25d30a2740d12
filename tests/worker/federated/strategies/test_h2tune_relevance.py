"""Clients learn from those whose first changes agree with their own."""

from dataclasses import replace

import pytest
import torch

from backend.contracts.params.h2tune import H2TuneParams
from backend.contracts.privacy import PrivacySettings, SecureAggregation, privacy_refusals
from tests.worker.federated.strategies.rounds import federation_of, plans_of, run_round, training
from tests.worker.federated.tiny import make_client
from worker.federated.client_round import take
from worker.federated.strategies.h2tune import H2Tune
from worker.federated.strategies.h2tune_relevance import Change, mixing_weights
from worker.federated.types import ClientUpdate, ServerState, Tensors
from worker.federated.wire import decode_state, encode_state

FIXED = {"gauge": "none", "joint_rounds": 1}


def change(*values: float) -> Change:
    matrix = torch.tensor(values).view(1, 2, 2)
    return {"q": matrix}, {"q": torch.ones_like(matrix)}


def test_weights_follow_agreement_and_examples() -> None:
    changes = {
        "a": change(1.0, 1.0, 1.0, 1.0),
        "b": change(2.0, 2.0, 2.0, 1.0),  # cosine 7 / (2 sqrt 13) = 0.97, z = 1.94
        "c": change(1.0, -1.0, 1.0, -1.0),  # cosine 0 with a, 0.14 with b
    }
    weights = mixing_weights(changes, {"a": 30, "b": 10, "c": 20}, threshold=1.9)
    assert weights == {"a": {"a": 0.75, "b": 0.25}, "b": {"a": 0.75, "b": 0.25}, "c": {"c": 1.0}}
    apart = mixing_weights(changes, {"a": 30, "b": 10, "c": 20}, threshold=1.95)
    assert apart == {name: {name: 1.0} for name in "abc"}


def test_who_agrees_far_less_than_the_best_is_not_alike() -> None:
    """Clients of one model agree a little whatever their tasks; z is twice the cosine here."""
    changes = {
        "a": change(1.0, 0.0001, 0.0001, 0.0001),
        "b": change(10.0, 1.0, 1.0, 1.0),  # 0.99 with a: z = 1.97
        "c": change(1.0, 2.0, 2.0, 1.0),  # 0.32 with a, z = 0.63; 0.47 with b, z = 0.93
        "d": change(0.1, 2.0, 2.0, 1.0),  # 0.03 with a; 0.20 with b; 0.96 with c, z = 1.91
    }
    weights = mixing_weights(changes, dict.fromkeys("abcd", 1), threshold=0.5)
    assert weights["a"] == weights["b"] == {"a": 0.5, "b": 0.5}
    assert weights["c"] == weights["d"] == {"c": 0.5, "d": 0.5}
    without = {name: changes[name] for name in "abc"}
    # The best of c is b, but b has a better one: likeness is mutual.
    assert mixing_weights(without, dict.fromkeys("abc", 1), threshold=0.5)["c"] == {"c": 1.0}


def test_only_entries_that_both_hold_are_compared() -> None:
    changes = {"a": change(1.0, 1.0, 5.0, 5.0), "b": change(1.0, 1.0, 0.0, 0.0)}
    # cosine 1 over two entries: z = 1.41.
    assert mixing_weights(changes, {"a": 1, "b": 1}, 1.4)["a"] == {"a": 0.5, "b": 0.5}
    assert mixing_weights(changes, {"a": 1, "b": 1}, 1.42)["a"] == {"a": 1.0}


def rounds(
    strategy: H2Tune, names: str, number: int
) -> tuple[list[ServerState], list[dict[str, Tensors]], list[dict[str, float]]]:
    """States after each round, what was sent in it, and the reports' values."""
    clients = [make_client(name, num_layers=1) for name in names]
    federation = federation_of(clients)
    state, private = strategy.init_state(federation, 1), {}
    states, sent, values = [], [], []
    for n in range(1, number + 1):
        updates = run_round(strategy, state, clients, n, training(), private)
        private = {update.client_id: update.private for update in updates}
        state, report = strategy.aggregate(state, federation, iter(updates))
        states.append(decode_state(encode_state(state)))
        sent.append({update.client_id: update.shared for update in updates})
        values.append(dict(report.values))
    return states, sent, values


@pytest.mark.parametrize("scope", ["model", "role", "slot", "role_in_slot"])
def test_a_client_alone_goes_the_way_of_delta(scope: str) -> None:
    relevance = H2TuneParams(
        aggregation="relevance", relevance_rounds=2, relevance_scope=scope, **FIXED
    )
    personal, _, values = rounds(H2Tune(relevance), "a", 3)
    common, _, _ = rounds(H2Tune(H2TuneParams(**FIXED)), "a", 3)
    for mine, shared in zip(personal, common, strict=True):
        for role, matrix in take("slots", shared.tensors).items():
            assert torch.allclose(mine.tensors[f"own/a/{role}"], matrix, atol=1e-6)
    assert values[1]["mixing_weight/a/a"] == values[2]["mixing_weight/a/a"] == 1.0


@pytest.mark.parametrize(("threshold", "together"), [(0.0, True), (1000.0, False)])
def test_slots_part_alone_and_meet_where_changes_agree(threshold: float, together: bool) -> None:
    params = H2TuneParams(
        aggregation="relevance", relevance_rounds=1, relevance_threshold=threshold, **FIXED
    )
    strategy = H2Tune(params)
    states, sent, values = rounds(strategy, "ab", 2)
    assert values[0]["relevance_cosine"] > 0  # equal models, equal data, other factors
    assert (values[0].get("mixing_weight/a/b") == 0.5) is together
    assert not take("moved", states[0].tensors)  # settled: no longer needed
    clients = [make_client(name, num_layers=1) for name in "ab"]
    plan = plans_of(strategy, states[1], clients, 3)["a"]
    for role, matrix in take("values", plan.tensors).items():
        # Rank 4 of 8 holds the leading 4 x 4 block.
        start = take("own/a", states[0].tensors)[role][:, :4, :4].flatten(1)
        changes = [sent[1][name][f"values/{role}"] for name in ("ab" if together else "a")]
        assert torch.allclose(matrix, start + sum(changes) / len(changes), atol=1e-6)


def other(signs: list[float]) -> torch.Tensor:
    """4 x 4 entries in two slots: threes, times a slot's sign in every second place."""
    rows = torch.full((2, 16), 3.0)
    rows[:, ::2] *= torch.tensor(signs)[:, None]
    return rows


@pytest.mark.parametrize(
    ("scope", "shared", "apart"),
    [
        ("role", {"o": [True, True], "q": [False, False]}, "q"),
        ("slot", {"o": [True, False], "q": [True, False]}, "1"),
        ("role_in_slot", {"o": [True, False], "q": [False, False]}, "q/0"),
    ],
)
def test_parts_may_be_compared_one_by_one(
    scope: str, shared: dict[str, list[bool]], apart: str
) -> None:
    """Two clients that change alike in some of the parts, and not at all alike in the others."""
    params = H2TuneParams(
        aggregation="relevance", relevance_scope=scope, relevance_threshold=1.9, **FIXED
    )
    strategy = H2Tune(params)
    clients = [make_client(name, num_layers=2) for name in "ab"]
    federation = federation_of(clients)
    state = strategy.init_state(federation, 1)
    updates = run_round(strategy, state, clients, 1, training(), {})
    sent = {  # a cosine of 1 where the signs are equal, of 0 where not: z of 4 or more, or of 0
        "a": {role: torch.ones(2, 16) for role in shared},
        "b": {
            role: other([1 if alike else -1 for alike in parts]) for role, parts in shared.items()
        },
    }
    made = [
        replace(
            update,
            shared={
                name: sent[update.client_id].get(name.removeprefix("values/"), torch.zeros(2, 16))
                if name.startswith("values/")
                else tensor
                for name, tensor in update.shared.items()
            },
        )
        for update in updates
    ]
    settled, report = strategy.aggregate(state, federation, iter(made))
    own = {name: take(f"own/{name}", settled.tensors) for name in "ab"}
    start = take("slots", state.tensors)
    for name in "ab":
        for role, parts in shared.items():
            moved = (own[name][role] - start[role])[:, :4, :4].flatten(1)
            mean = (sent["a"][role] + sent["b"][role]) / 2
            alone = sent[name][role]
            for slot, alike in enumerate(parts):
                torch.testing.assert_close(moved[slot], mean[slot] if alike else alone[slot])
    weights = settled.meta["mixing_weights_by_part"]
    assert weights[apart]["a"] == {"a": 1.0}
    num_shared = sum(known["a"] == {"a": 0.5, "b": 0.5} for known in weights.values())
    assert num_shared == 1
    # The report has the mean over all parts.
    assert report.values["mixing_weight/a/b"] == pytest.approx(0.5 / len(weights))
    assert report.values["mixing_weight/a/a"] == pytest.approx(1 - 0.5 / len(weights))
    again, _ = strategy.aggregate(
        decode_state(encode_state(settled)), federation, iter(made_next(made))
    )
    assert again.meta["mixing_weights_by_part"] == weights


def made_next(updates: list[ClientUpdate]) -> list[ClientUpdate]:
    """The same changes in the next round, where masks are known."""
    return [
        replace(
            update,
            round_number=2,
            shared={n: t for n, t in update.shared.items() if not n.startswith("mask/")},
        )
        for update in updates
    ]


def test_protection_and_relevance_exclude_each_other() -> None:
    secure = PrivacySettings(secure_aggregation=SecureAggregation())
    reasons = privacy_refusals(H2TuneParams(aggregation="relevance"), secure)
    assert any("compares single clients" in reason for reason in reasons)
