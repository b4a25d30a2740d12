"""What H2Tune promises, derived by hand where it can be."""

import dataclasses
import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import nn

from backend.contracts.enums import RoundKind
from backend.contracts.metrics import MetricName
from backend.contracts.params.h2tune import H2TuneParams
from tests.worker.federated.strategies.rounds import (
    at_work,
    federation_of,
    plans_of,
    run_round,
    training,
)
from tests.worker.federated.tiny import make_client, make_inputs
from worker.federated.alignment import map_down, orthonormality_error
from worker.federated.client_round import take, training_batches
from worker.federated.errors import InvalidConfigError, InvalidUpdateError
from worker.federated.simulation import SimulatedClient, simulate
from worker.federated.strategies.h2tune import H2Tune, preset
from worker.federated.strategies.h2tune_client import ClientModel
from worker.federated.strategies.h2tune_training import Training
from worker.federated.training import train
from worker.federated.types import ClientPlan, ClientUpdate, LocalClient, ServerState, Tensors
from worker.federated.wire import encode_state, payload_bytes

NUM_ROLES = 7  # of Llama
LAYOUTS = ["block", "mask", "gather"]


UNGAUGED: dict[str, Any] = {"gauge": "none", "train_alignment": True, "mask_warmup_rounds": 1}
"""Everything moves: alignments and masks are trained, and B starts at zero."""


def strategy_with(**changes: Any) -> H2Tune:
    return H2Tune(H2TuneParams(**{**UNGAUGED, **changes}))


def three() -> list[SimulatedClient]:
    """Depths 3, 2, 2; ranks 8, 4, 2; widths 32, 48, 32; two families."""
    return [
        make_client("a", rank=8, num_layers=3),
        make_client("b", rank=4, width=48, seed=1, num_train=12),
        make_client("c", "gemma", rank=2, seed=2, num_train=20),
    ]


def started(strategy: H2Tune, clients: list[SimulatedClient], seed: int = 1) -> ServerState:
    return strategy.init_state(federation_of(clients), seed)


def aggregated(
    strategy: H2Tune,
    state: ServerState,
    clients: list[SimulatedClient],
    updates: list[ClientUpdate],
) -> ServerState:
    return strategy.aggregate(state, federation_of(clients), iter(updates))[0]


def slots(state: ServerState) -> Tensors:
    return take("slots", state.tensors)


def two_rounds(
    strategy: H2Tune, clients: list[SimulatedClient]
) -> tuple[ServerState, dict[str, Tensors]]:
    """State and what the clients keep after one joint round."""
    state = started(strategy, clients)
    updates = run_round(strategy, state, clients, 1, training())
    private = {update.client_id: update.private for update in updates}
    return aggregated(strategy, state, clients, updates), private


def loaded(strategy: H2Tune, plan: ClientPlan, local: LocalClient) -> ClientModel:
    return strategy._load(plan, local)


# Learning


def test_slots_change_in_every_round() -> None:
    strategy, clients = strategy_with(), three()
    state, private = started(strategy, clients), {}
    for number in (1, 2):
        updates = run_round(strategy, state, clients, number, training(), private)
        private = {update.client_id: update.private for update in updates}
        after = aggregated(strategy, state, clients, updates)
        for role, matrix in slots(after).items():
            assert not torch.equal(matrix, slots(state)[role]), (number, role)
        state = after


def test_shared_parts_have_no_gradient_before_b_moves_and_have_one_after() -> None:
    strategy, client = strategy_with(), make_client(rank=4)
    state = started(strategy, [client])
    config = training()
    for number, private in ((1, None), (2, two_rounds(strategy, [client])[1]["a"])):
        plan = plans_of(strategy, state, [client], number)["a"]
        local = at_work(client, config, private)
        braid = loaded(strategy, plan, local)
        braid.stack.requires_grad_(True)
        (batch,) = next(training_batches(plan, local))
        logits = local.objective.target_logits(braid.model, batch)
        nn.functional.cross_entropy(logits, local.objective.targets(batch)).backward()
        parts = {**braid.changes(), **braid.alignments(), **braid.scores()}
        for name, parameter in parts.items():
            assert (parameter.grad.abs().sum() > 0) == (number == 2), (number, name)


def test_phases_leave_the_other_part_bit_identical() -> None:
    strategy, client = strategy_with(mask_warmup_rounds=5), make_client(rank=4, num_layers=3)
    state, private = two_rounds(strategy, [client])
    plan = plans_of(strategy, state, [client], 2)["a"]
    local = at_work(client, training(), private["a"])
    braid = loaded(strategy, plan, local)
    groups = {
        "shared": {**braid.changes(), **braid.alignments(), **braid.scores()},
        "private": braid.factors(),
    }

    def now() -> dict[str, Tensors]:
        return {
            group: {name: p.detach().clone() for name, p in parameters.items()}
            for group, parameters in groups.items()
        }

    seen = [now()]
    phases = Training(braid, plan, local).phases(joint=False)
    assert [phase.num_steps for phase in phases] == [2, 2]
    batches = training_batches(plan, local)
    for phase in phases:
        train(
            braid.model,
            local.objective,
            [phase],
            batches,
            local.training,
            moments={},
            seed=0,
            round_number=1,
            on_progress=lambda progress: None,
        )
        seen.append(now())
    start, middle, end = seen
    for name in groups["private"]:
        assert torch.equal(start["private"][name], middle["private"][name]), name
        assert not torch.equal(middle["private"][name], end["private"][name]), name
    for name in groups["shared"]:
        assert torch.equal(middle["shared"][name], end["shared"][name]), name
    assert any(not torch.equal(start["shared"][n], middle["shared"][n]) for n in braid.changes())
    assert any(not torch.equal(start["shared"][n], middle["shared"][n]) for n in braid.scores())


@pytest.mark.parametrize(
    ("changes", "steps", "expected"),
    [
        ({}, 10, [("shared", 5), ("private", 5)]),
        ({"shared_fraction": 0.3}, 10, [("shared", 3), ("private", 7)]),
        ({"shared_fraction": 0.01}, 10, [("shared", 1), ("private", 9)]),
        (
            {"granularity": "epoch"},
            10,
            # 16 examples in batches of 4: an epoch is 4 steps; 10 steps are 4 + 4 + 2.
            [("shared", 2), ("private", 2)] * 2 + [("shared", 1), ("private", 1)],
        ),
        ({"granularity": "step"}, 4, [("private", 1), ("shared", 1)] * 2),
        (
            {"granularity": "step", "shared_fraction": 0.25},
            4,
            [("private", 1)] * 3 + [("shared", 1)],
        ),
    ],
)
def test_schedule(changes: dict[str, Any], steps: int, expected: list[tuple[str, int]]) -> None:
    strategy, client = strategy_with(**changes), make_client(rank=4)
    plan = plans_of(strategy, started(strategy, [client]), [client], 2)["a"]
    local = at_work(client, training(local_steps=steps))
    phases = Training(loaded(strategy, plan, local), plan, local).phases(joint=False)
    assert [(phase.groups[0].name, phase.num_steps) for phase in phases] == expected


def test_joint_rounds_and_late_clients() -> None:
    strategy, clients = strategy_with(), [make_client("a", rank=4), make_client("b", rank=4)]
    state, private = two_rounds(strategy, clients)
    # b joins in round 2 with B = 0: it trains jointly, else its shared part had no gradient.
    first, second = run_round(strategy, state, clients, 2, training(), {"a": private["a"]})
    for update in (first, second):
        assert update.metrics[MetricName.SHARED_CHANGE] > 0
        assert update.metrics[MetricName.PRIVATE_CHANGE] > 0


def test_trained_alignment_stays_orthonormal_and_fixed_alignment_stays() -> None:
    client = make_client(rank=4)
    for trained in (True, False):
        strategy = strategy_with(train_alignment=trained)
        clients = [client, make_client("b", rank=4, num_layers=3)]
        state, private = two_rounds(strategy, clients)
        (update, _) = run_round(strategy, state, clients, 2, training(), private)
        before, after = private["a"]["alignment/all"], update.private["alignment/all"]
        assert torch.equal(before, after) != trained
        assert orthonormality_error(after) < 1e-5
        assert update.metrics[MetricName.ALIGNMENT_ERROR] == orthonormality_error(after)


@pytest.mark.parametrize("sharing", ["per_model", "per_role"])
def test_alignment_sharing(sharing: str) -> None:
    strategy = strategy_with(alignment_sharing=sharing)
    state, private = two_rounds(strategy, three())
    keys = set(take("alignment", private["a"]))
    assert keys == ({"all"} if sharing == "per_model" else set(slots(state)))


# Exactness


@pytest.mark.parametrize("aggregation", ["delta", "mean"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("constraint", ["orthonormal", "pseudo_inverse"])
def test_a_client_alone_finds_its_own_function(
    aggregation: str, layout: str, constraint: str
) -> None:
    strategy = strategy_with(
        aggregation=aggregation, layout=layout, alignment_constraint=constraint
    )
    client = make_client(rank=4)
    deeper = dataclasses.replace(federation_of([client]), global_rank=8)
    state, private = strategy.init_state(deeper, 1), None
    for number in (1, 2):
        plan = strategy.configure_round(state, deeper, number, deliver=False)["a"]
        local = at_work(client, training(), private)
        update = strategy.train_client(plan, local)
        state, _ = strategy.aggregate(state, deeper, iter([update]))
        private = update.private
        with torch.no_grad():
            expected = local.model(**make_inputs("llama")).logits
            plan = strategy.configure_round(state, deeper, number + 1, deliver=False)["a"]
            again = loaded(strategy, plan, at_work(client, training(), private)).model
            actual = again(**make_inputs("llama")).logits
        assert (actual - expected).norm() / expected.norm() < 1e-5


@pytest.mark.parametrize("constraint", ["orthonormal", "pseudo_inverse"])
def test_a_shallow_client_alone_in_a_deep_stack_finds_its_own_function(constraint: str) -> None:
    # A deeper client is in the federation, but only the shallow one takes part in the round.
    strategy = strategy_with(alignment_constraint=constraint)
    clients = [make_client("a", rank=4), make_client("b", rank=8, num_layers=5)]
    state = started(strategy, clients)
    local = at_work(clients[0], training())
    update = strategy.train_client(plans_of(strategy, state, clients, 1)["a"], local)
    after = aggregated(strategy, state, clients, [update])
    plan = plans_of(strategy, after, clients, 2)["a"]
    braid = loaded(strategy, plan, at_work(clients[0], training(), update.private))
    with torch.no_grad():
        expected = local.model(**make_inputs("llama")).logits
        actual = braid.model(**make_inputs("llama")).logits
    assert (actual - expected).norm() / expected.norm() < 1e-5


@pytest.mark.parametrize("layout", LAYOUTS)
def test_idle_rounds_leave_the_slots_as_they_are(layout: str) -> None:
    strategy, clients = strategy_with(layout=layout), three()
    state = started(strategy, clients)
    updates = run_round(strategy, state, clients, 1, training(local_steps=0))
    after = aggregated(strategy, state, clients, updates)
    assert all(torch.equal(slots(after)[role], slots(state)[role]) for role in slots(state))
    for update in updates:
        assert update.metrics[MetricName.SHARED_CHANGE] == 0
        assert MetricName.TRAIN_LOSS not in update.metrics


def test_idle_rounds_destroy_slots_under_the_published_mean() -> None:
    # The reason for `delta`: nobody learned anything, and yet most of S is gone.
    strategy, clients = strategy_with(aggregation="mean"), three()
    state = started(strategy, clients)
    updates = run_round(strategy, state, clients, 1, training(local_steps=0))
    after = aggregated(strategy, state, clients, updates)
    lost = sum(float((slots(after)[r] - s).pow(2).sum()) for r, s in slots(state).items())
    whole = sum(float(s.pow(2).sum()) for s in slots(state).values())
    assert (lost / whole) ** 0.5 > 0.3


@pytest.mark.parametrize("layout", LAYOUTS)
def test_zeros_follow_from_rank(layout: str) -> None:
    strategy, clients = strategy_with(layout=layout), three()
    updates = run_round(strategy, started(strategy, clients), clients, 1, training())
    for client, update in zip(clients, updates, strict=True):
        expected = 1 - (client.lora_rank / 8) ** 2
        assert update.metrics[MetricName.SPARSITY] == expected


def test_order_of_clients_is_irrelevant() -> None:
    strategy, clients = strategy_with(), three()
    state = started(strategy, clients)
    updates = run_round(strategy, state, clients, 1, training())
    results = {
        encode_state(aggregated(strategy, state, clients, list(order)))
        for order in itertools.permutations(updates)
    }
    assert len(results) == 1


def test_a_round_can_be_repeated_bit_for_bit() -> None:
    strategy, clients = strategy_with(distillation_weight=0.5, anchor="proximal"), three()
    state, private = two_rounds(strategy, clients)
    config = training(lora_dropout=0.1)
    one = run_round(strategy, state, clients, 2, config, private)
    two = run_round(strategy, state, clients, 2, config, private)
    for first, second in zip(one, two, strict=True):
        assert all(torch.equal(first.shared[key], second.shared[key]) for key in first.shared)
        assert all(torch.equal(first.private[key], second.private[key]) for key in first.private)


# Aggregation by hand


def constant_update(
    client: SimulatedClient,
    strategy: H2Tune,
    state: ServerState,
    members: list[SimulatedClient],
    value: float,
) -> ClientUpdate:
    """An update whose slots all hold one value, with the client's real masks."""
    plan = plans_of(strategy, state, members, 1)[client.client_id]
    idle = strategy.train_client(plan, at_work(client, training(local_steps=0)))
    shared = {
        name: torch.full_like(tensor, value) if name.startswith("values/") else tensor
        for name, tensor in idle.shared.items()
    }
    return dataclasses.replace(idle, shared=shared)


def test_delta_divides_by_those_who_hold_an_entry() -> None:
    """Two equally deep clients of rank 8 and 4 with 12 and 4 examples, changes 1 and 5.

    Inside the common 4 x 4 block: (12 * 1 + 4 * 5) / 16 = 2. Outside only the first counts: 1.
    """
    members = [make_client("a", rank=8, num_train=12), make_client("b", rank=4, num_train=4)]
    for rate in (1.0, 0.5):
        strategy = strategy_with(server_learning_rate=rate)
        state = started(strategy, members)
        updates = [
            constant_update(client, strategy, state, members, value)
            for client, value in zip(members, (1.0, 5.0), strict=True)
        ]
        after = aggregated(strategy, state, members, updates)
        change = slots(after)["q"] - slots(state)["q"]
        expected = torch.ones(2, 8, 8)
        expected[:, :4, :4] = 2.0
        torch.testing.assert_close(change, rate * expected, atol=1e-6, rtol=1e-5)


def test_mean_counts_missing_entries_as_zeros() -> None:
    members = [make_client("a", rank=8, num_train=12), make_client("b", rank=4, num_train=4)]
    strategy = strategy_with(aggregation="mean")
    state = started(strategy, members)
    updates = [
        constant_update(client, strategy, state, members, value)
        for client, value in zip(members, (1.0, 5.0), strict=True)
    ]
    expected = torch.full((2, 8, 8), 0.75)
    expected[:, :4, :4] = 2.0
    torch.testing.assert_close(slots(aggregated(strategy, state, members, updates))["q"], expected)


def test_coverage_divides_by_the_share_of_each_slot() -> None:
    """One layer over three slots sits in the middle one; the others stay as they are."""
    members = [
        make_client("a", rank=8, num_layers=1, num_train=8),
        make_client("b", rank=8, num_layers=3, num_train=8),
    ]
    strategy = strategy_with(aggregation="coverage")
    state = started(strategy, members)
    alone = constant_update(members[0], strategy, state, members, 0.5)
    after = slots(aggregated(strategy, state, members, [alone]))["q"]
    torch.testing.assert_close(after[1], torch.full((8, 8), 0.5))
    assert torch.equal(after[[0, 2]], slots(state)["q"][[0, 2]])


def test_roles_are_averaged_over_the_clients_that_have_them() -> None:
    members = [
        make_client("a", "llama", rank=8, num_train=12),
        make_client("b", "gpt2", rank=8, num_train=4),
    ]
    strategy = strategy_with()
    state = started(strategy, members)
    updates = [
        constant_update(client, strategy, state, members, value)
        for client, value in zip(members, (1.0, 5.0), strict=True)
    ]
    after = aggregated(strategy, state, members, updates)
    means = {r: float((slots(after)[r] - slots(state)[r]).mean()) for r in ("q", "qkv", "o")}
    assert means == pytest.approx({"q": 1.0, "qkv": 5.0, "o": 2.0}, rel=1e-4)


def test_report_gives_the_mean_cosine_of_the_updates() -> None:
    members = [make_client(name, rank=8, num_train=4, seed=i) for i, name in enumerate("abc")]
    strategy = strategy_with()
    state = started(strategy, members)
    updates = run_round(strategy, state, members, 1, training())
    _, report = strategy.aggregate(state, federation_of(members), iter(updates))
    flat = [
        torch.cat([u.shared[key].flatten() for key in sorted(u.shared) if key.startswith("values")])
        for u in updates
    ]
    cosines = [
        float(nn.functional.cosine_similarity(one, two, dim=0))
        for one, two in itertools.combinations(flat, 2)
    ]
    assert report.values["update_cosine"] == pytest.approx(sum(cosines) / 3, abs=1e-5)


@pytest.mark.parametrize("control", ["permuted", "noise"])
def test_controls_keep_the_size_of_the_change_and_nothing_else(control: str) -> None:
    clients = three()
    strategy = strategy_with()
    state = started(strategy, clients)
    updates = run_round(strategy, state, clients, 1, training())
    true = slots(aggregated(strategy, state, clients, updates))
    false = slots(aggregated(strategy_with(control=control), state, clients, updates))
    again = slots(aggregated(strategy_with(control=control), state, clients, updates))
    for role, start in slots(state).items():
        change, shuffled = (true[role] - start).flatten(1), (false[role] - start).flatten(1)
        torch.testing.assert_close(shuffled.norm(dim=1), change.norm(dim=1), rtol=1e-4, atol=1e-5)
        if control == "permuted":
            torch.testing.assert_close(
                shuffled.sort(dim=1).values, change.sort(dim=1).values, rtol=1e-3, atol=1e-5
            )
        cosine = nn.functional.cosine_similarity(change.flatten(), shuffled.flatten(), dim=0)
        assert abs(float(cosine)) < 0.5
        assert torch.equal(false[role], again[role])


# The wire


@pytest.mark.parametrize("layout", LAYOUTS)
def test_bytes_equal_the_formula(layout: str) -> None:
    """Values 4 L* m r^2; masks of 7 roles; coverage 4 L*; nothing else."""
    strategy, clients = strategy_with(layout=layout), three()
    state = started(strategy, clients)
    private: dict[str, Tensors] = {}
    mask_bytes = {
        # R = 8: one bitmap byte per role for a block, eight for single entries; or 2 per position.
        "block": lambda rank: min(1, 2 * rank),
        "mask": lambda rank: min(8, 2 * rank**2),
        "gather": lambda rank: min(8, 2 * rank**2),
    }[layout]
    for number in (1, 2):
        plans = plans_of(strategy, state, clients, number)
        updates = run_round(strategy, state, clients, number, training(), private)
        for client, update in zip(clients, updates, strict=True):
            rank = client.lora_rank
            values, masks = 4 * 3 * NUM_ROLES * rank**2, NUM_ROLES * mask_bytes(rank)
            up, down = payload_bytes(update.shared), payload_bytes(plans[client.client_id].tensors)
            assert up == values + 4 * 3 + (masks if number == 1 else 0)
            assert down == (4 * 3 * NUM_ROLES * 64 if number == 1 else values + masks)
            assert up == update.metrics[MetricName.BYTES_UP_VALUES]
            assert down == update.metrics[MetricName.BYTES_DOWN_VALUES]
            assert up < update.metrics[MetricName.BYTES_UP]
            assert down < update.metrics[MetricName.BYTES_DOWN]
        private = {update.client_id: update.private for update in updates}
        state = aggregated(strategy, state, clients, updates)


@pytest.mark.parametrize("aggregation", ["delta", "mean"])
def test_drift_of_a_client_alone_is_what_moves_the_state(aggregation: str) -> None:
    """With all entries held and one client, S becomes what it sent, or S plus that."""
    strategy, client = strategy_with(aggregation=aggregation), make_client(rank=8, num_train=12)
    state = started(strategy, [client])
    (update,) = run_round(strategy, state, [client], 1, training())
    _, report = strategy.aggregate(state, federation_of([client]), iter([update]))
    drift = update.metrics[MetricName.SHARED_DRIFT]
    assert drift > 0
    assert drift == pytest.approx(report.values["relative_change"], rel=1e-4)
    assert update.metrics[MetricName.NUM_EXAMPLES] == 12


def test_lora_bytes_count_both_factors() -> None:
    client = make_client(rank=4)
    (update,) = run_round(
        strategy_with(), started(strategy_with(), [client]), [client], 1, training(local_steps=0)
    )
    inputs = 6 * 32 + 48
    outputs = 32 + 16 + 16 + 32 + 48 + 48 + 32
    assert update.metrics[MetricName.BYTES_LORA] == 2 * 4 * (inputs + outputs) * 4


def test_only_shared_matrices_leave_the_client() -> None:
    clients = three()
    updates = run_round(strategy_with(), started(strategy_with(), clients), clients, 1, training())
    for update in updates:
        assert {name.split("/")[0] for name in update.shared} == {"values", "mask", "coverage"}


def test_masks_freeze_after_the_warmup() -> None:
    strategy = strategy_with(mask_warmup_rounds=2)
    clients = [make_client("a", rank=8), make_client("b", rank=4, seed=1)]
    state, private, churns = started(strategy, clients), {}, []
    for number in (1, 2, 3):
        updates = run_round(strategy, state, clients, number, training(learning_rate=0.5), private)
        churns.append(updates[1].metrics[MetricName.MASK_CHURN])
        assert ("mask/q" in updates[1].shared) == (number <= 2)
        private = {update.client_id: update.private for update in updates}
        state = aggregated(strategy, state, clients, updates)
    assert churns[0] > 0
    assert churns[2] == 0


def test_a_client_that_lost_its_store_gets_its_mask_back() -> None:
    strategy = strategy_with()
    clients = [make_client("a", rank=8), make_client("b", rank=4, seed=1)]
    state = started(strategy, clients)
    updates = run_round(strategy, state, clients, 1, training(learning_rate=0.5))
    state = aggregated(strategy, state, clients, updates)
    plan = plans_of(strategy, state, clients, 2)["b"]
    fresh = loaded(strategy, plan, at_work(clients[1], training(), None))
    kept = loaded(strategy, plan, at_work(clients[1], training(), updates[1].private))
    assert all(torch.equal(fresh.masks()[role], kept.masks()[role]) for role in fresh.masks())


# Refusals


def broken(
    change: Callable[[Tensors], None],
) -> tuple[H2Tune, ServerState, list[Any], ClientUpdate]:
    strategy, clients = strategy_with(), three()
    state = started(strategy, clients)
    plan = plans_of(strategy, state, clients, 1)["b"]
    update = strategy.train_client(plan, at_work(clients[1], training(local_steps=1)))
    shared = dict(update.shared)
    change(shared)
    return strategy, state, clients, dataclasses.replace(update, shared=shared)


def spoil(shared: Tensors, value: float) -> None:
    shared["values/q"] = shared["values/q"].clone()
    shared["values/q"][0, 0] = value


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: spoil(s, math.nan), "'values/q' holds NaN or infinity"),
        (lambda s: spoil(s, math.inf), "'values/q' holds NaN or infinity"),
        (lambda s: s.update({"values/q": torch.zeros(3, 9)}), r"'values/q' is \(3, 9\)"),
        (lambda s: s.update({"values/x": torch.zeros(1)}), "unknown are 'values/x'"),
        (lambda s: s.update({"factors/A": torch.zeros(1)}), "unknown are 'factors/A'"),
        (lambda s: s.pop("values/q"), "missing: 'values/q'"),
        (lambda s: s.pop("coverage/all"), "missing: 'coverage/all'"),
        (lambda s: s.update({"values/q": s["values/q"].half()}), "float16"),
        (lambda s: s.pop("mask/q"), "masks are given for"),
        (lambda s: s.update({"mask/q": torch.tensor([255], dtype=torch.uint8)}), "expected 4"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(
    change: Callable[[Tensors], None], message: str
) -> None:
    strategy, state, clients, update = broken(change)
    with pytest.raises(InvalidUpdateError, match=message):
        aggregated(strategy, state, clients, [update])


def test_senders_that_do_not_fit_are_refused() -> None:
    strategy, state, clients, update = broken(lambda shared: None)
    for bad, message in (
        ([dataclasses.replace(update, client_id="z")], "'z' comes from outside"),
        ([update, update], "came twice"),
        ([dataclasses.replace(update, num_examples=0)], "states 0 examples"),
        ([], "at least one"),
    ):
        with pytest.raises(InvalidUpdateError, match=message):
            aggregated(strategy, state, clients, bad)


@pytest.mark.parametrize(
    ("changes", "rank", "message"),
    [
        ({}, 16, "'b'.*lora_rank is 16 but global_rank is 8"),
        ({}, 0, "'b'.*lora_rank is 0"),
        ({"sparsity": 0.2}, 4, "'b'.*sparsity 0.2 keeps a 7 x 7 block"),
        ({"alignment_init": "identity"}, 4, "'b' has 2 layers but the deepest client 3"),
    ],
)
def test_clients_that_cannot_take_part_are_named(
    changes: dict[str, Any], rank: int, message: str
) -> None:
    clients = [make_client("a", rank=8, num_layers=3), make_client("b", rank=rank)]
    (refusal,) = strategy_with(**changes).check(federation_of(clients))
    assert refusal.client_id == "b"
    with pytest.raises(InvalidConfigError, match=message):
        simulate(
            H2TuneParams(**changes),
            clients,
            num_rounds=1,
            training=training(),
            global_rank=8,
            seed=0,
        )


def test_a_store_of_another_client_is_refused() -> None:
    strategy, clients = strategy_with(), three()
    state, private = two_rounds(strategy, clients)
    with pytest.raises(InvalidUpdateError, match="store of client 'b'"):
        run_round(strategy, state, clients[1:2] + clients[:1], 2, training(), {"b": private["a"]})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("values/q"), "In the plan, these are missing: 'values/q'"),
        (lambda t: t.pop("mask/q"), "In the plan, masks are given for"),
        (lambda t: t.update({"slots/q": torch.zeros(3, 8, 8)}), "unknown are 'slots/q'"),
        (lambda t: spoil(t, math.nan), "In the plan, 'values/q' holds NaN"),
    ],
)
def test_plans_that_do_not_fit_are_refused(change: Callable[[Tensors], None], message: str) -> None:
    strategy, clients = strategy_with(), three()
    state, private = two_rounds(strategy, clients)
    plan = plans_of(strategy, state, clients, 2)["b"]
    tensors = dict(plan.tensors)
    change(tensors)
    with pytest.raises(InvalidUpdateError, match=message):
        loaded(
            strategy,
            dataclasses.replace(plan, tensors=tensors),
            at_work(clients[1], training(), private["b"]),
        )


# Options


@pytest.mark.parametrize("name", ["h2tune", "h2tune-paper", "h2tune-code"])
def test_presets_run(name: str) -> None:
    result = simulate(
        preset(name),  # type: ignore[arg-type]
        three(),
        num_rounds=2,
        training=training(),
        global_rank=8,
        seed=0,
    )
    assert all(
        math.isfinite(v) for r in result.rounds for m in r.metrics.values() for v in m.values()
    )


def middle_change(**changes: Any) -> float:
    """How far a round moves the shared matrices under some options."""
    strategy = strategy_with(**changes)
    client = make_client(rank=4)
    state, private = two_rounds(strategy_with(), [client])
    (update,) = run_round(strategy, state, [client], 2, training(local_steps=8), private)
    return update.metrics[MetricName.SHARED_CHANGE]


def test_anchor_holds_the_shared_matrices_back() -> None:
    assert middle_change(anchor="proximal", anchor_weight=100.0) < 0.9 * middle_change()


def test_norm_penalty_shrinks_the_shared_matrices() -> None:
    def size(weight: float) -> float:
        strategy, client = strategy_with(norm_weight=weight, joint_rounds=0), make_client(rank=8)
        state, private = two_rounds(strategy_with(), [client])
        (update,) = run_round(strategy, state, [client], 2, training(local_steps=8), private)
        after = aggregated(strategy, state, [client], [update])
        return sum(float(matrix.pow(2).sum()) for matrix in slots(after).values())

    assert size(100.0) < size(0.0)


def test_distillation_pulls_answers_towards_the_teacher() -> None:
    """With an overwhelming weight, the private phase hardly changes what the model says."""

    def moved(weight: float) -> float:
        strategy = strategy_with(distillation_weight=weight, shared_fraction=0.1)
        client = make_client(rank=4)
        state, private = two_rounds(strategy_with(), [client])
        plan = plans_of(strategy, state, [client], 2)["a"]
        local = at_work(client, training(local_steps=10), private["a"])
        braid = loaded(strategy, plan, local)
        phases = Training(braid, plan, local).phases(joint=False)
        batches, said = training_batches(plan, local), []
        for phase in phases:
            train(
                braid.model,
                local.objective,
                [phase],
                batches,
                local.training,
                moments={},
                seed=0,
                round_number=1,
                on_progress=lambda progress: None,
            )
            rows = local.objective.collate(local.objective.encode(local.data.train))
            with torch.no_grad():
                logits = local.objective.target_logits(braid.model, rows)
            said.append(logits.log_softmax(-1))
        before, after = said
        return float(nn.functional.kl_div(after, before, reduction="batchmean", log_target=True))

    assert moved(100.0) < 0.3 * moved(0.0)


@pytest.mark.parametrize("gauge", ["none", "orthonormal", "shared_seed"])
def test_gauges_decide_what_clients_have_in_common(gauge: str) -> None:
    strategy = strategy_with(gauge=gauge)
    clients = [make_client("a", rank=8), make_client("b", rank=4, seed=1)]
    updates = run_round(strategy, started(strategy, clients), clients, 1, training(local_steps=0))
    name = "factors/A/model.layers.0.self_attn.q_proj"
    first, second = (update.private[name] for update in updates)
    assert torch.equal(first[:4], second) == (gauge == "shared_seed")
    if gauge == "orthonormal":
        torch.testing.assert_close(second @ second.T, torch.eye(4), atol=1e-5, rtol=0)


def test_factors_from_elsewhere_are_used() -> None:
    strategy, client = strategy_with(), make_client(rank=4)
    state = started(strategy, [client])
    (fresh,) = run_round(strategy, state, [client], 1, training(local_steps=0))
    given = {
        name: torch.full_like(tensor, 0.01)
        for name, tensor in fresh.private.items()
        if name.startswith("factors/")
    }
    plan = plans_of(strategy, state, [client], 1)["a"]
    braid = loaded(strategy, plan, at_work(client, training(), given))
    assert all((factor == 0.01).all() for factor in braid.factors().values())


# Delivery


@pytest.mark.parametrize("layout", LAYOUTS)
def test_delivered_adapter_is_the_model_with_the_final_slots(layout: str, tmp_path: Path) -> None:
    strategy, clients = strategy_with(layout=layout), three()
    state, private = two_rounds(strategy, clients)
    plans = strategy.configure_round(state, federation_of(clients), 2, deliver=True)
    for client in clients:
        plan = plans[client.client_id]
        assert plan.kind is RoundKind.DELIVER
        inputs = make_inputs("llama")
        kept = private[client.client_id]
        braid = loaded(strategy, plan, at_work(client, training(), kept))
        metrics = strategy.deliver_client(plan, at_work(client, training(), kept), tmp_path)
        plain = PeftModel.from_pretrained(at_work(client, training()).model, tmp_path).eval()
        with torch.no_grad():
            expected = braid.model(**inputs).logits
            actual = plain(**inputs).logits
        assert (actual - expected).norm() / expected.norm() <= 1e-5
        assert metrics.keys() == {MetricName.ACCURACY_DELIVERED, MetricName.SPARSITY}


def test_received_middles_are_the_slots_seen_through_the_alignment() -> None:
    strategy, clients = strategy_with(), three()
    state, private = two_rounds(strategy, clients)
    plan = plans_of(strategy, state, clients, 2)["b"]
    braid = loaded(strategy, plan, at_work(clients[1], training(), private["b"]))
    expected = map_down(private["b"]["alignment/all"], slots(state)["q"])
    held = torch.zeros(8, 8)
    held[:4, :4] = 1
    for layer in (0, 1):
        actual = braid.held_middles()[f"model.layers.{layer}.self_attn.q_proj"]
        torch.testing.assert_close(actual, expected[layer] * held)
