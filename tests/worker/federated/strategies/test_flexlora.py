"""FlexLoRA's sum and its best parts, against NumPy's SVD of the dense matrices."""

import numpy as np
import pytest
import torch
from peft import PeftModel

from backend.contracts.params.lora import FlexLoraParams
from tests.worker.federated.strategies.factors import (
    best_of_rank,
    dense,
    dense_mean,
    distance,
    random_factors,
    random_updates,
    update_of,
)
from tests.worker.federated.strategies.rounds import at_work, federation_of, training
from tests.worker.federated.tiny import make_client, make_inputs
from worker.federated.low_rank import factors_of, joined, products_of
from worker.federated.strategies.flexlora import FlexLora, closest
from worker.federated.strategies.leading import rank_of
from worker.federated.types import ServerState
from worker.federated.wire import payload_bytes

QUICK = training(evaluate_every=100)
STRATEGY = FlexLora(FlexLoraParams())


def clients(*ranks: int):
    return [
        make_client(f"c{i}", rank=rank, num_train=4 + i, seed=i) for i, rank in enumerate(ranks)
    ]


def test_each_client_gets_the_closest_adapter_of_its_rank() -> None:
    members = federation_of(clients(6, 2, 3))
    updates = random_updates(members)
    state, report = STRATEGY.aggregate(STRATEGY.init_state(members, 0), members, iter(updates))
    plans = STRATEGY.configure_round(state, members, 2, deliver=False)
    mean = dense_mean(updates)
    for client in members.clients:
        tensors = plans[client.client_id].tensors
        assert rank_of(tensors) == client.lora_rank
        assert distance(dense(tensors), best_of_rank(mean, client.lora_rank)) < 1e-5
    assert report.num_clients == 3
    size = np.sqrt(sum(np.sum(matrix**2) for matrix in mean.values()))
    assert report.values["update_norm"] == pytest.approx(size)
    for name, rank in (("kept_by_largest_rank", 6), ("kept_by_smallest_rank", 2)):
        kept = np.sqrt(sum(np.sum(m**2) for m in best_of_rank(mean, rank).values()))
        assert report.values[name] == pytest.approx(kept / size)


def test_a_rank_that_holds_all_others_loses_nothing() -> None:
    members = federation_of(clients(3, 2))
    updates = random_updates(members)
    weights = [update.num_examples / 9 for update in updates]
    total = {
        role: joined([p.times(w) for p, w in zip(parts, weights, strict=True)])
        for role in members.clients[0].modules
        for parts in [[products_of(update.shared)[role] for update in updates]]
    }
    for rank in (5, 7):
        assert distance(dense(factors_of(closest(total, rank))), dense_mean(updates)) < 1e-5


def test_a_is_orthonormal_and_b_carries_falling_sizes() -> None:
    members = federation_of(clients(4, 3))
    updates = random_updates(members)
    state, _ = STRATEGY.aggregate(STRATEGY.init_state(members, 0), members, iter(updates))
    for role, product in products_of(state.tensors).items():
        torch.testing.assert_close(
            product.a @ product.a.mT, torch.eye(4).expand(2, 4, 4), atol=1e-5, rtol=0
        )
        values = np.linalg.svd(dense_mean(updates)[role], compute_uv=False)[:, :4]
        np.testing.assert_allclose(product.b.norm(dim=1).numpy(), values, rtol=1e-5)


def test_a_rank_above_what_the_matrix_can_have_is_filled_with_zeros() -> None:
    members = federation_of([make_client("a", rank=40)])  # of 32 x 32 matrices, and wider ones
    (update,) = random_updates(members)
    state, _ = STRATEGY.aggregate(STRATEGY.init_state(members, 0), members, [update])
    (plan,) = STRATEGY.configure_round(state, members, 2, deliver=False).values()
    assert rank_of(plan.tensors) == 40
    assert distance(dense(plan.tensors), dense(update.shared)) < 1e-5


def test_one_client_alone_gets_its_own_function_back() -> None:
    members = federation_of(clients(4))
    (update,) = random_updates(members)
    state, report = STRATEGY.aggregate(STRATEGY.init_state(members, 0), members, [update])
    (plan,) = STRATEGY.configure_round(state, members, 2, deliver=False).values()
    assert distance(dense(plan.tensors), dense(update.shared)) < 1e-5
    assert report.values["kept_by_smallest_rank"] == pytest.approx(1)


def test_the_order_of_updates_is_irrelevant() -> None:
    members = federation_of(clients(6, 2, 3))
    updates = random_updates(members)
    start = STRATEGY.init_state(members, 0)
    forward, _ = STRATEGY.aggregate(start, members, updates)
    back, _ = STRATEGY.aggregate(start, members, updates[::-1])
    assert distance(dense(back.tensors), dense(forward.tensors)) < 1e-5


def test_clients_who_learned_nothing_leave_nothing() -> None:
    members = federation_of(clients(4, 2))
    start = STRATEGY.init_state(members, 0)
    plans = STRATEGY.configure_round(start, members, 1, deliver=False)
    updates = [update_of(c, plans[c.client_id].tensors) for c in members.clients]
    state, report = STRATEGY.aggregate(start, members, iter(updates))
    assert all(not matrix.any() for matrix in dense(state.tensors).values())
    assert report.values["kept_by_smallest_rank"] == 1


def test_bytes_follow_the_client_s_rank_both_ways() -> None:
    members = clients(6, 2)
    federation = federation_of(members)
    plan = STRATEGY.configure_round(
        STRATEGY.init_state(federation, 0), federation, 1, deliver=False
    )["c1"]
    update = STRATEGY.train_client(plan, at_work(members[1], QUICK))
    modules = federation.clients[1].modules.values()
    expected = 4 * 2 * 2 * sum(m.in_features + m.out_features for m in modules)
    assert payload_bytes(plan.tensors) == expected
    assert payload_bytes(update.shared) == expected
    assert not any(name.startswith("moments/") for name in update.private)


def test_clients_of_any_alpha_train_around_the_same_update(tmp_path) -> None:
    """What stock PEFT loads is W + B A, however the client scales its adapter."""
    client = make_client("a", rank=4)
    client = type(client)(
        client.client_id, client.model, client.tokenizer, client.data, 4, lora_alpha=3.0
    )
    federation = federation_of([client])
    factors = {n: t * 0.1 for n, t in random_factors(federation.clients[0]).items()}
    state = ServerState(factors, {"seed": 0})
    (plan,) = STRATEGY.configure_round(state, federation, 1, deliver=True).values()
    STRATEGY.deliver_client(plan, at_work(client, QUICK), tmp_path)
    base, inputs = at_work(client, QUICK).model, make_inputs("llama")
    with torch.no_grad():
        loaded = PeftModel.from_pretrained(at_work(client, QUICK).model, tmp_path).eval()
        for role, matrices in dense(factors).items():
            for layer, matrix in enumerate(matrices):
                part = "self_attn" if role in "qkvo" else "mlp"
                module = base.get_submodule(f"model.layers.{layer}.{part}.{role}_proj")
                module.weight += torch.from_numpy(matrix).float()
        torch.testing.assert_close(
            loaded(**inputs).logits, base(**inputs).logits, atol=1e-5, rtol=1e-5
        )
    assert loaded.peft_config["default"].r == 4
