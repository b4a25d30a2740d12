"""What HeteroTune (reconstructed) promises, derived by hand or in NumPy."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel

from backend.contracts.enums import StrategyName
from backend.contracts.metrics import MetricName
from backend.contracts.params.heterotune import HeteroTuneParams
from backend.contracts.strategies import info_of
from tests.worker.federated.strategies.rounds import (
    at_work,
    federation_of,
    plans_of,
    run_round,
    training,
)
from tests.worker.federated.tiny import make_client, make_inputs
from worker.federated.adapters import FedAdapterConfig
from worker.federated.errors import InvalidUpdateError
from worker.federated.simulation import SimulatedClient, simulate
from worker.federated.strategies.heterotune import HeteroTune, slots_of
from worker.federated.strategies.heterotune_client import num_held
from worker.federated.types import ClientUpdate, ServerState
from worker.federated.wire import payload_bytes

KAPPA, BETA = 6, 4


def strategy_with(**changes: Any) -> HeteroTune:
    values = {"bottleneck": KAPPA, "num_branches": BETA, **changes}
    return HeteroTune(HeteroTuneParams(**values))


def three() -> list[SimulatedClient]:
    """Depths 4, 2, 3; ranks 8, 4, 2 of 8; widths 32, 48, 32; two families; 16, 12, 20 examples."""
    return [
        make_client("a", rank=8, num_layers=4),
        make_client("b", rank=4, width=48, seed=1, num_train=12),
        make_client("c", "gpt2", num_layers=3, rank=2, seed=2, num_train=20),
    ]


SLOTS = {"a": [0, 1, 2, 3], "b": [0, 3], "c": [0, 2, 3]}
HELD = {"a": 4, "b": 2, "c": 1}
EXAMPLES = {"a": 16, "b": 12, "c": 20}


def started(strategy: HeteroTune, clients: list[SimulatedClient], seed: int = 1) -> ServerState:
    return strategy.init_state(federation_of(clients), seed)


def random_updates(seed: int) -> list[ClientUpdate]:
    source = torch.Generator().manual_seed(seed)
    return [
        ClientUpdate(
            client_id,
            1,
            EXAMPLES[client_id],
            {"branches": torch.randn(len(slots), HELD[client_id], KAPPA, KAPPA, generator=source)},
            {},
            {},
        )
        for client_id, slots in SLOTS.items()
    ]


def test_title_says_what_it_is() -> None:
    info = info_of(StrategyName.HETEROTUNE)
    assert info.title == "HeteroTune (reconstructed)"
    assert "not a LoRA" in info.summary
    assert not info.capabilities.linear_aggregation


def test_capacity_follows_from_rank() -> None:
    params = HeteroTuneParams(num_branches=4)
    assert [num_held(params, rank, 16) for rank in (1, 4, 5, 8, 12, 16)] == [1, 1, 2, 2, 3, 4]
    assert [num_held(HeteroTuneParams(num_branches=1), rank, 16) for rank in (1, 16)] == [1, 1]


def test_layers_use_the_slots_at_their_depth() -> None:
    for client in federation_of(three()).clients:
        assert slots_of(client, 4) == SLOTS[client.client_id]


def test_plans_hold_a_clients_branches_and_nothing_else() -> None:
    strategy, clients = strategy_with(), three()
    state = started(strategy, clients)
    assert state.tensors["branches"].shape == (4, BETA, KAPPA, KAPPA)
    for client_id, plan in plans_of(strategy, state, clients, 1).items():
        assert plan.tensors.keys() == {"branches"}
        for layer, slot in enumerate(SLOTS[client_id]):
            expected = state.tensors["branches"][slot, : HELD[client_id]]
            assert torch.equal(plan.tensors["branches"][layer], expected)


def test_bytes_equal_the_formula() -> None:
    """L_i beta_i kappa^2 values of four bytes, up and down."""
    strategy, clients = strategy_with(), three()
    state = started(strategy, clients)
    for update in run_round(strategy, state, clients, 1, training(local_steps=1)):
        expected = len(SLOTS[update.client_id]) * HELD[update.client_id] * KAPPA**2 * 4
        assert payload_bytes(update.shared) == expected
        assert update.metrics[MetricName.BYTES_UP_VALUES] == expected
        assert update.metrics[MetricName.BYTES_DOWN_VALUES] == expected


def test_aggregation_equals_a_loop_over_branches() -> None:
    """F <- F + eta sum over holders p_i change / sum over holders p_i, branch by branch."""
    strategy, clients = strategy_with(conflict="none", server_learning_rate=0.5), three()
    state, updates = started(strategy, clients), random_updates(3)
    after, report = strategy.aggregate(state, federation_of(clients), iter(updates))
    expected = state.tensors["branches"].double().numpy().copy()
    for slot in range(4):
        for branch in range(BETA):
            holders = [
                (u.num_examples, u.shared["branches"][SLOTS[u.client_id].index(slot), branch])
                for u in updates
                if slot in SLOTS[u.client_id] and branch < HELD[u.client_id]
            ]
            total = sum(count * change.double().numpy() for count, change in holders)
            expected[slot, branch] += 0.5 * total / sum(count for count, _ in holders)
    np.testing.assert_allclose(after.tensors["branches"].numpy(), expected, rtol=1e-6)
    assert report.num_clients == 3
    assert "conflict_rate" not in report.values


def test_conflicts_are_taken_out_per_branch_and_slot() -> None:
    """Two clients of equal weight oppose each other in one branch of one slot only."""
    clients = [make_client("a", rank=4), make_client("b", rank=4, seed=1)]
    changes = torch.zeros(2, 2, 1, 2, 2)  # client, layer, branch, kappa, kappa
    changes[:, 0] = torch.tensor([[1.0, 2.0], [3.0, 4.0]])  # agree in the first slot
    changes[0, 1, 0, 0] = torch.tensor([4.0, 0.0])
    changes[1, 1, 0, 0] = torch.tensor([-2.0, 2.0])
    updates = [
        ClientUpdate(name, 1, 10, {"branches": change}, {}, {})
        for name, change in zip("ab", changes, strict=True)
    ]
    moved = {}
    for rule in ("none", "cmga", "pairwise"):
        strategy = strategy_with(num_branches=1, bottleneck=2, conflict=rule)
        federation = federation_of(clients, global_rank=4)
        state = strategy.init_state(federation, 0)
        after, report = strategy.aggregate(state, federation, iter(updates))
        moved[rule] = after.tensors["branches"] - state.tensors["branches"]
        torch.testing.assert_close(moved[rule][0], changes[0, 0])
        if rule != "none":
            assert report.values["conflict_rate"] == {"cmga": 0.0, "pairwise": 0.5}[rule]
    # The mean is (1, 1): <(4, 0), g> = 4 and <(-2, 2), g> = 0, so cmga finds no conflict with it.
    torch.testing.assert_close(moved["none"][1, 0, 0], torch.tensor([1.0, 1.0]))
    torch.testing.assert_close(moved["cmga"], moved["none"])
    # (4, 0) + (8 / 8) (-2, 2) = (2, 2); (-2, 2) + (8 / 16) (4, 0) = (0, 2); their mean is (1, 2).
    torch.testing.assert_close(moved["pairwise"][1, 0, 0], torch.tensor([1.0, 2.0]))


def test_cmga_reports_and_resolves_a_minority() -> None:
    clients = [make_client(name, rank=4, seed=n) for n, name in enumerate("abc")]
    federation = federation_of(clients, global_rank=4)
    strategy = strategy_with(num_branches=1, bottleneck=1, conflict="cmga")
    state = strategy.init_state(federation, 0)
    updates = [
        ClientUpdate(name, 1, 10, {"branches": torch.full((2, 1, 1, 1), value)}, {}, {})
        for name, value in (("a", 3.0), ("b", 1.0), ("c", -1.0))
    ]
    after, report = strategy.aggregate(state, federation, iter(updates))
    # The mean is 1 and c points against it; in one dimension all of c goes: (3 + 1 + 0) / 3.
    change = after.tensors["branches"] - state.tensors["branches"]
    torch.testing.assert_close(change, torch.full((2, 1, 1, 1), 4 / 3))
    assert report.values["conflict_rate"] == pytest.approx(1 / 3)


@pytest.mark.parametrize("rule", ["none", "cmga", "pairwise"])
def test_order_of_clients_is_irrelevant(rule: str) -> None:
    strategy, clients = strategy_with(conflict=rule), three()
    state, updates = started(strategy, clients), random_updates(5)
    one, two = (
        strategy.aggregate(state, federation_of(clients), iter(order))
        for order in (updates, updates[::-1])
    )
    torch.testing.assert_close(one[0].tensors, two[0].tensors, rtol=0, atol=1e-6)
    assert one[1].values == pytest.approx(two[1].values)


@pytest.mark.parametrize("rule", ["none", "cmga", "pairwise"])
def test_idle_rounds_change_nothing(rule: str) -> None:
    strategy, clients = strategy_with(conflict=rule), three()
    state = started(strategy, clients)
    updates = run_round(strategy, state, clients, 1, training(local_steps=0))
    assert not any(update.shared["branches"].any() for update in updates)
    after, report = strategy.aggregate(state, federation_of(clients), iter(updates))
    assert torch.equal(after.tensors["branches"], state.tensors["branches"])
    assert report.values["relative_change"] == 0.0


@pytest.mark.parametrize("variant", ["fedadapter", "dema"])
def test_a_client_alone_finds_its_own_function(variant: str) -> None:
    strategy, client = strategy_with(variant=variant), make_client(rank=8, num_layers=3)
    state = started(strategy, [client])
    config = training()
    plan = plans_of(strategy, state, [client], 1)["a"]
    local = at_work(client, config)
    (update,) = [strategy.train_client(plan, local)]  # leaves the trained model in `local`
    with torch.no_grad():
        trained = local.model(**make_inputs("llama")).logits
        untrained = client.model(**make_inputs("llama")).logits
    state, _ = strategy.aggregate(state, federation_of([client]), iter([update]))
    plan = plans_of(strategy, state, [client], 2)["a"]
    again = at_work(client, config, update.private)
    model = strategy._load(plan, again)
    with torch.no_grad():
        now = model.model(**make_inputs("llama")).logits
    torch.testing.assert_close(now, trained, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(now, untrained, rtol=1e-2)


def test_only_branches_leave_the_client() -> None:
    strategy, clients = strategy_with(), three()
    state = started(strategy, clients)
    for update in run_round(strategy, state, clients, 1, training()):
        assert update.shared.keys() == {"branches"}
        kinds = {name.split("/")[1] for name in update.private if name.startswith("factors/")}
        assert kinds == {"D", "U", "G"}
        sent = update.shared["branches"].flatten()
        for name, tensor in update.private.items():
            if name.startswith("factors/"):
                assert not torch.isin(tensor[tensor != 0], sent).any(), name


def test_what_one_client_learns_reaches_the_others() -> None:
    strategy, clients = strategy_with(), three()
    state = started(strategy, clients)
    a, b, _ = run_round(strategy, state, clients, 1, training())
    with_a, _ = strategy.aggregate(state, federation_of(clients), iter([a, b]))
    without, _ = strategy.aggregate(state, federation_of(clients), iter([b]))
    plans = [plans_of(strategy, s, clients, 2)["b"].tensors["branches"] for s in (with_a, without)]
    assert not torch.equal(*plans)


def test_delivered_folder_is_the_model(tmp_path: Path) -> None:
    clients = three()
    result = simulate(
        strategy_with().params,
        clients,
        num_rounds=2,
        training=training(),
        global_rank=8,
        seed=4,
        output=tmp_path,
    )
    strategy = strategy_with()
    federation = federation_of(clients)
    plans = strategy.configure_round(result.state, federation, 3, deliver=True)
    for client in clients:
        local = at_work(client, training(), result.private[client.client_id])
        expected = strategy._load(plans[client.client_id], local).model
        base = at_work(client, training()).model
        loaded = PeftModel.from_pretrained(base, tmp_path / client.client_id).eval()
        config = loaded.peft_config["default"]
        assert isinstance(config, FedAdapterConfig)
        assert config.num_branches == HELD[client.client_id]
        with torch.no_grad():
            torch.testing.assert_close(
                loaded(**make_inputs("llama")).logits, expected(**make_inputs("llama")).logits
            )


def test_permuted_control_keeps_the_entries_of_each_branch() -> None:
    clients, updates = three(), random_updates(7)
    states = {}
    for control in ("none", "permuted"):
        strategy = strategy_with(conflict="none", control=control)
        state = started(strategy, clients)
        after, _ = strategy.aggregate(state, federation_of(clients), iter(updates))
        states[control] = (after.tensors["branches"] - state.tensors["branches"]).flatten(2)
    assert not torch.allclose(states["none"], states["permuted"])
    torch.testing.assert_close(
        states["none"].sort(dim=2).values, states["permuted"].sort(dim=2).values
    )


def test_clients_of_too_large_a_rank_are_named() -> None:
    federation = federation_of(three(), global_rank=4)
    (refusal,) = strategy_with().check(federation)
    assert refusal.client_id == "a"
    assert "lora_rank is 8 but global_rank is 4" in refusal.reason


def test_tensors_that_do_not_fit_are_refused() -> None:
    strategy, clients = strategy_with(), three()
    state, federation = started(strategy, clients), federation_of(clients)
    a, b, _ = random_updates(1)
    swapped = dataclasses.replace(a, shared=b.shared)
    with pytest.raises(InvalidUpdateError, match=r"'branches' is \(2, 2, 6, 6\)"):
        strategy.aggregate(state, federation, iter([swapped]))
    with pytest.raises(InvalidUpdateError, match="came twice"):
        strategy.aggregate(state, federation, iter([a, a]))
    plan = plans_of(strategy, state, clients, 1)["a"]
    foreign = run_round(strategy, state, [clients[1]], 1, training(local_steps=0))[0].private
    with pytest.raises(InvalidUpdateError, match="store of client 'a'"):
        strategy.train_client(plan, at_work(clients[0], training(), foreign))
