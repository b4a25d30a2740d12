"""HetLoRA's mean, and what self-pruning gives up."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from peft import PeftModel

from backend.contracts.params.lora import FedItParams, HetLoraParams
from tests.worker.federated.strategies.factors import (
    dense,
    distance,
    random_factors,
    random_updates,
    update_of,
)
from tests.worker.federated.strategies.rounds import at_work, federation_of, training
from tests.worker.federated.tiny import make_client, make_inputs
from worker.federated.errors import InvalidUpdateError
from worker.federated.strategies.fedit import FedIt
from worker.federated.strategies.hetlora import HetLora
from worker.federated.strategies.leading import leading, rank_of
from worker.federated.types import FederationSpec, ServerState, Tensors
from worker.federated.wire import payload_bytes

QUICK = training(evaluate_every=100)


def federation(*ranks: int) -> FederationSpec:
    return federation_of(
        [make_client(f"c{i}", rank=rank, num_train=4 + i) for i, rank in enumerate(ranks)]
    )


def padded(factors: Tensors, rank: int) -> dict[str, np.ndarray]:
    """With zero rows of A and columns of B up to a rank."""
    grown = {}
    for name, tensor in factors.items():
        missing = rank - tensor.shape[1 if name.startswith("A/") else 2]
        widths = (
            ((0, 0), (0, missing), (0, 0)) if name[0] == "A" else ((0, 0), (0, 0), (0, missing))
        )
        grown[name] = np.pad(tensor.double().numpy(), widths)
    return grown


def test_factors_are_averaged_with_zeros_and_by_size_of_update() -> None:
    members = federation(6, 2, 3)
    updates = random_updates(members)
    state, report = HetLora(HetLoraParams()).aggregate(
        HetLora(HetLoraParams()).init_state(members, 0), members, iter(updates)
    )
    sizes = [
        np.sqrt(sum(np.sum(matrix**2) for matrix in dense(update.shared).values()))
        for update in updates
    ]
    for name, tensor in state.tensors.items():
        expected = sum(
            size * padded(update.shared, 6)[name]
            for size, update in zip(sizes, updates, strict=True)
        ) / sum(sizes)
        np.testing.assert_allclose(tensor.numpy(), expected, atol=1e-6)
    assert report.num_clients == 3
    assert report.values["largest_weight"] == pytest.approx(max(sizes) / sum(sizes))
    assert report.values["mean_rank"] == pytest.approx(11 / 3)


def test_equal_ranks_and_sizes_are_fedit_with_equal_weights() -> None:
    members = federation(4, 4)
    first, second = (random_factors(client) for client in members.clients)
    scale = np.sqrt(
        sum(np.sum(m**2) for m in dense(first).values())
        / sum(np.sum(m**2) for m in dense(second).values())
    )
    second = {n: t * (scale if n.startswith("B/") else 1.0) for n, t in second.items()}
    updates = [
        update_of(client, factors, num_examples=5)
        for client, factors in zip(members.clients, (first, second), strict=True)
    ]
    hetlora, fedit = HetLora(HetLoraParams()), FedIt(FedItParams())
    found, _ = hetlora.aggregate(hetlora.init_state(members, 0), members, iter(updates))
    expected, _ = fedit.aggregate(fedit.init_state(members, 0), members, iter(updates))
    assert found.tensors.keys() == expected.tensors.keys()
    for name, tensor in expected.tensors.items():
        torch.testing.assert_close(found.tensors[name], tensor, atol=1e-6, rtol=0)


def test_one_client_alone_gets_its_own_function_back() -> None:
    members = federation(4)
    (update,) = random_updates(members)
    strategy = HetLora(HetLoraParams())
    state, _ = strategy.aggregate(strategy.init_state(members, 0), members, [update])
    (plan,) = strategy.configure_round(state, members, 2, deliver=False).values()
    assert distance(dense(plan.tensors), dense(update.shared)) < 1e-6


def test_updates_of_size_zero_count_alike() -> None:
    members = federation(4, 4)
    updates = random_updates(members)
    for update in updates:
        for name in update.shared:
            if name.startswith("B/"):
                update.shared[name].zero_()
    strategy = HetLora(HetLoraParams())
    state, report = strategy.aggregate(strategy.init_state(members, 0), members, iter(updates))
    for name, tensor in state.tensors.items():
        torch.testing.assert_close(tensor, sum(u.shared[name] for u in updates) / 2)
    assert report.values["largest_weight"] == 0.5


def test_the_order_of_updates_is_irrelevant() -> None:
    members = federation(6, 2, 3)
    updates = random_updates(members)
    strategy = HetLora(HetLoraParams())
    start = strategy.init_state(members, 0)
    forward, _ = strategy.aggregate(start, members, updates)
    back, _ = strategy.aggregate(start, members, updates[::-1])
    for name, tensor in forward.tensors.items():
        torch.testing.assert_close(back.tensors[name], tensor, atol=1e-6, rtol=0)


def test_a_client_gets_and_sends_the_first_components_of_its_rank_and_no_more_bytes() -> None:
    clients = [make_client("a", rank=6), make_client("b", rank=2, seed=1)]
    members = federation_of(clients)
    strategy = HetLora(HetLoraParams())
    state = ServerState(random_factors(members.clients[0]), {"seed": 0, "ranks": {"a": 6, "b": 2}})
    plan = strategy.configure_round(state, members, 1, deliver=False)["b"]
    for name, tensor in plan.tensors.items():
        whole = state.tensors[name]
        first = whole[:, :2] if name.startswith("A/") else whole[:, :, :2]
        assert torch.equal(tensor, first)
    update = strategy.train_client(plan, at_work(clients[1], QUICK))
    modules = members.clients[1].modules.values()
    expected = 4 * 2 * 2 * sum(m.in_features + m.out_features for m in modules)
    assert payload_bytes(plan.tensors) == expected
    assert payload_bytes(update.shared) == expected


@pytest.mark.parametrize(("weight", "rank"), [(30.0, 3), (0.0, 4)])
def test_rank_falls_only_when_the_tail_shrank(weight: float, rank: int) -> None:
    """lambda 30 drives the tail down; without it, a tail that starts near zero only grows."""
    client = make_client("a", rank=4)
    members = federation_of([client])
    params = HetLoraParams(self_pruning=True, pruning_factor=0.9, pruning_weight=weight)
    factors = random_factors(members.clients[0])
    if weight == 0:
        factors = {n: t * (1e-3 if n[0] == "B" else 0.1) for n, t in factors.items()}
    state = ServerState(factors, {"seed": 0, "ranks": {"a": 4}})
    strategy = HetLora(params)
    plan = strategy.configure_round(state, members, 1, deliver=False)["a"]
    update = strategy.train_client(plan, at_work(client, training(weight_decay=0.0)))
    assert rank_of(update.shared) == rank
    after, report = strategy.aggregate(state, members, [update])
    assert after.meta["ranks"] == {"a": rank}
    assert report.values["mean_rank"] == rank
    following = strategy.configure_round(after, members, 2, deliver=False)["a"]
    assert rank_of(following.tensors) == rank
    assert distance(dense(following.tensors), dense(update.shared)) < 1e-6


def test_pruned_factors_train_on_and_are_delivered_as_plain_lora(tmp_path) -> None:
    client = make_client("a", rank=4)
    members = federation_of([client])
    params = HetLoraParams(self_pruning=True, pruning_factor=0.5, pruning_weight=30.0)
    state = ServerState(random_factors(members.clients[0]), {"seed": 0, "ranks": {"a": 4}})
    strategy, private, ranks = HetLora(params), None, []
    for number in (1, 2, 3):
        plan = strategy.configure_round(state, members, number, deliver=False)["a"]
        update = strategy.train_client(plan, at_work(client, QUICK, private))
        state, _ = strategy.aggregate(state, members, [replace(update, private={})])
        private = update.private
        ranks.append(rank_of(update.shared))
    assert ranks == [2, 1, 1]
    plan = strategy.configure_round(state, members, 4, deliver=True)["a"]
    strategy.deliver_client(plan, at_work(client, QUICK, private), tmp_path)
    base, inputs = at_work(client, QUICK).model, make_inputs("llama")
    with torch.no_grad():
        loaded = PeftModel.from_pretrained(at_work(client, QUICK).model, tmp_path).eval()
        for name, matrices in dense(state.tensors).items():
            for layer, matrix in enumerate(matrices):
                part = "self_attn" if name in "qkvo" else "mlp"
                module = base.get_submodule(f"model.layers.{layer}.{part}.{name}_proj")
                module.weight += torch.from_numpy(matrix).float()
        torch.testing.assert_close(
            loaded(**inputs).logits, base(**inputs).logits, atol=1e-5, rtol=1e-5
        )
    assert loaded.peft_config["default"].r == 1


def test_no_rank_falls_below_the_smallest_or_without_pruning() -> None:
    client = make_client("a", rank=4)
    members = federation_of([client])
    state = ServerState(random_factors(members.clients[0]), {"seed": 0, "ranks": {"a": 4}})
    for params in (
        HetLoraParams(self_pruning=True, smallest_rank=4, pruning_factor=0.5, pruning_weight=30.0),
        HetLoraParams(self_pruning=True, smallest_rank=99, pruning_weight=30.0),
        HetLoraParams(pruning_weight=30.0),
    ):
        strategy = HetLora(params)
        plan = strategy.configure_round(state, members, 1, deliver=False)["a"]
        assert rank_of(strategy.train_client(plan, at_work(client, QUICK)).shared) == 4


def test_a_rank_that_nobody_agreed_on_is_refused() -> None:
    members = federation(6, 4)
    strategy = HetLora(HetLoraParams(self_pruning=True, pruning_factor=0.5))
    state = strategy.init_state(members, 0)
    updates = random_updates(members)
    for rank, accepted in ((4, True), (2, True), (3, False), (5, False), (1, False)):
        changed = replace(updates[1], shared=random_factors(members.clients[1], rank))
        if accepted:
            after, _ = strategy.aggregate(state, members, [updates[0], changed])
            assert after.meta["ranks"]["c1"] == rank
        else:
            with pytest.raises(InvalidUpdateError, match="'c1'"):
                strategy.aggregate(state, members, [updates[0], changed])


def test_a_plan_that_does_not_fit_is_refused() -> None:
    client = make_client("a", rank=4)
    members = federation_of([client])
    strategy = HetLora(HetLoraParams())
    plan = strategy.configure_round(strategy.init_state(members, 0), members, 1, deliver=False)["a"]
    uneven = {**plan.tensors, "A/q": plan.tensors["A/q"][:, :2]}
    for tensors in ({}, uneven):
        with pytest.raises(InvalidUpdateError, match="the plan of client 'a'"):
            strategy.train_client(replace(plan, tensors=tensors), at_work(client, QUICK))


def test_leading_components_add_up() -> None:
    factors = random_factors(federation(4).clients[0])
    assert leading(factors, 9).keys() == factors.keys()
    assert all(torch.equal(leading(factors, 9)[name], t) for name, t in factors.items())
    first = dense(leading(factors, 1))
    for role, matrices in first.items():
        a, b = factors[f"A/{role}"].double(), factors[f"B/{role}"].double()
        np.testing.assert_allclose(matrices, (b[:, :, :1] * a[:, :1]).numpy())
