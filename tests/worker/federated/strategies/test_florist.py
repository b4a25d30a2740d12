"""FLoRIST's exact sum and its threshold, against NumPy's SVD of the dense matrices."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from peft import PeftModel

from backend.contracts.enums import RoundKind
from backend.contracts.params.lora import FloraParams, FloristParams
from tests.worker.federated.strategies.factors import (
    Dense,
    dense,
    dense_mean,
    distance,
    random_updates,
    update_of,
)
from tests.worker.federated.strategies.rounds import at_work, federation_of, training
from tests.worker.federated.tiny import make_client, make_inputs
from worker.federated.client_round import take
from worker.federated.errors import InvalidUpdateError
from worker.federated.strategies.flora import Flora
from worker.federated.strategies.florist import Florist, num_components
from worker.federated.types import ClientPlan, FederationSpec, ServerState
from worker.federated.wire import decode_plan, encode_plan, payload_bytes

QUICK = training(evaluate_every=100)
EXACT = Florist(FloristParams(energy=1.0))


def clients(*ranks: int):
    return [
        make_client(f"c{i}", rank=rank, num_train=4 + i, seed=i) for i, rank in enumerate(ranks)
    ]


def received(plan: ClientPlan, federation: FederationSpec) -> Dense:
    """What the last round added, from the plan's own pair of every layer."""
    spec = federation.clients[0]
    pair = {name: tensor.double().numpy() for name, tensor in take("latest", plan.tensors).items()}
    layers = range(spec.architecture.num_layers)
    return {
        role: np.stack([pair[f"B/{role}/{layer}"] @ pair[f"A/{role}/{layer}"] for layer in layers])
        for role in spec.modules
    }


def aggregated(strategy: Florist, federation: FederationSpec, updates):
    state, report = strategy.aggregate(
        strategy.init_state(federation, 0), federation, iter(updates)
    )
    return state, report, strategy.configure_round(state, federation, 2, deliver=False)


def test_all_the_energy_is_the_exact_sum() -> None:
    federation = federation_of(clients(6, 2, 3))
    updates = random_updates(federation)
    state, report, plans = aggregated(EXACT, federation, updates)
    for plan in plans.values():
        assert distance(received(plan, federation), dense_mean(updates)) < 1e-5
    assert distance(dense(take("latest", state.tensors)), dense_mean(updates)) < 1e-5
    assert report.values["stacked_rank"] == report.values["mean_rank"] == 11
    assert report.values["energy_kept"] == pytest.approx(1)


@pytest.mark.parametrize("energy", [0.5, 0.9, 0.99])
def test_every_layer_keeps_the_rank_that_its_energy_needs(energy: float) -> None:
    federation = federation_of(clients(6, 2, 3))
    updates = random_updates(federation)
    _, report, plans = aggregated(Florist(FloristParams(energy=energy)), federation, updates)
    plan, mean, ranks, expected = plans["c1"], dense_mean(updates), [], {}
    for role, stack in mean.items():
        u, s, vt = np.linalg.svd(stack, full_matrices=False)
        cut = []
        for layer in range(len(stack)):
            shares = np.cumsum(s[layer] ** 2) / np.sum(s[layer] ** 2)
            p = int(np.argmax(shares >= energy)) + 1
            ranks.append(p)
            cut.append((u[layer][:, :p] * s[layer][:p]) @ vt[layer][:p])
            assert plan.tensors[f"latest/A/{role}/{layer}"].shape == (p, stack.shape[2])
            assert plan.tensors[f"latest/B/{role}/{layer}"].shape == (stack.shape[1], p)
        expected[role] = np.stack(cut)
    assert len(set(ranks)) > 1, "the case must have layers of different rank"
    assert distance(received(plan, federation), expected) < 1e-5
    assert report.values["mean_rank"] == pytest.approx(np.mean(ranks))
    assert report.values["largest_rank"] == max(ranks)
    kept = sum(np.sum(m**2) for m in expected.values()) / sum(np.sum(m**2) for m in mean.values())
    assert report.values["energy_kept"] == pytest.approx(kept)
    modules = federation.clients[0].modules
    widths = [modules[role].in_features + modules[role].out_features for role in mean]
    by_role = np.array(ranks).reshape(len(mean), -1).sum(axis=1)
    assert payload_bytes(plan.tensors) == 4 * int(by_role @ widths)


def test_how_many_components_hold_a_share() -> None:
    """Squares 16, 9, 0 and their running sums 16, 25, 25; and nothing at all."""
    values = torch.tensor([[4.0, 3.0, 0.0], [0.0, 0.0, 0.0]])
    for energy, number in ((0.1, 1), (0.64, 1), (0.65, 2), (1.0, 2)):
        assert num_components(values, energy).tolist() == [number, 1]


def test_one_client_alone_gets_its_own_function_back() -> None:
    federation = federation_of(clients(4))
    (update,) = random_updates(federation)
    _, _, plans = aggregated(EXACT, federation, [update])
    assert distance(received(plans["c0"], federation), dense(update.shared)) < 1e-5


def test_the_order_of_updates_is_irrelevant() -> None:
    federation = federation_of(clients(6, 2, 3))
    updates = random_updates(federation)
    _, _, forward = aggregated(EXACT, federation, updates)
    _, _, back = aggregated(EXACT, federation, updates[::-1])
    assert distance(received(back["c0"], federation), received(forward["c0"], federation)) < 1e-5


def test_nothing_learned_sends_nothing_and_can_be_delivered(tmp_path) -> None:
    members = clients(4)
    federation = federation_of(members)
    (update,) = random_updates(federation)
    silent = {n: t * (0.0 if n.startswith("B/") else 1.0) for n, t in update.shared.items()}
    state, report, plans = aggregated(EXACT, federation, [update_of(federation.clients[0], silent)])
    assert payload_bytes(plans["c0"].tensors) == 0
    assert report.values["energy_kept"] == 1
    plan = EXACT.configure_round(state, federation, 2, deliver=True)["c0"]
    arrived = decode_plan(encode_plan(plan))
    assert EXACT.deliver_client(arrived, at_work(members[0], QUICK), tmp_path)


def played(strategy, members, num_rounds: int = 2):
    """State, private tensors, and the dense mean of every round's updates."""
    federation, private, means = federation_of(members), {}, []
    state = strategy.init_state(federation, 0)
    for number in range(1, num_rounds + 1):
        plans = strategy.configure_round(state, federation, number, deliver=False)
        updates = [
            strategy.train_client(
                decode_plan(encode_plan(plans[c.client_id])),
                at_work(c, QUICK, private.get(c.client_id)),
            )
            for c in members
        ]
        private = {update.client_id: update.private for update in updates}
        state, _ = strategy.aggregate(state, federation, [replace(u, private={}) for u in updates])
        means.append(dense_mean(updates))
    return state, private, means


def test_rounds_add_up_and_are_delivered_as_plain_lora(tmp_path) -> None:
    members = clients(4, 2)
    federation = federation_of(members)
    state, private, means = played(EXACT, members)
    plan = EXACT.configure_round(state, federation, 3, deliver=True)["c1"]
    metrics = EXACT.deliver_client(plan, at_work(members[1], QUICK, private["c1"]), tmp_path)
    assert metrics
    base, inputs = at_work(members[1], QUICK).model, make_inputs("llama")
    with torch.no_grad():
        loaded = PeftModel.from_pretrained(at_work(members[1], QUICK).model, tmp_path).eval()
        for role in means[0]:
            for layer in range(2):
                part = "self_attn" if role in "qkvo" else "mlp"
                module = base.get_submodule(f"model.layers.{layer}.{part}.{role}_proj")
                change = means[0][role][layer] + means[1][role][layer]
                module.weight += torch.from_numpy(change).float()
        torch.testing.assert_close(
            loaded(**inputs).logits, base(**inputs).logits, atol=1e-5, rtol=1e-5
        )


def test_all_the_energy_trains_as_flora_does() -> None:
    _, _, exact = played(EXACT, clients(4, 2))
    _, _, flora = played(Flora(FloraParams()), clients(4, 2))
    for mine, theirs in zip(exact, flora, strict=True):
        assert distance(mine, theirs) < 1e-3  # AdamW amplifies what rounding leaves


def test_who_missed_a_round_gets_the_sum_of_all() -> None:
    members = clients(4, 2)
    federation = federation_of(members)
    first, second = (random_updates(federation, seed=seed)[0] for seed in (1, 2))
    state = EXACT.init_state(federation, 0)
    for update in (first, second):
        state, _ = EXACT.aggregate(state, federation, [update])
    plans = EXACT.configure_round(state, federation, 3, deliver=False)
    assert distance(received(plans["c0"], federation), dense(second.shared)) < 1e-5
    assert not take("earlier", plans["c0"].tensors)
    trained = EXACT.train_client(plans["c1"], at_work(members[1], QUICK))
    both = {role: m + dense(second.shared)[role] for role, m in dense(first.shared).items()}
    assert distance(dense(take("base", trained.private)), both) < 1e-5


@pytest.mark.parametrize("change", ["missing", "unknown", "misshaped", "no number"])
def test_a_pair_that_does_not_fit_is_refused(change: str) -> None:
    members = clients(4)
    federation = federation_of(members)
    _, _, plans = aggregated(EXACT, federation, random_updates(federation))
    tensors, name = dict(plans["c0"].tensors), "latest/A/q/1"
    match change:
        case "missing":
            del tensors[name]
        case "unknown":
            tensors["latest/A/q/2"] = tensors[name]
        case "misshaped":
            tensors[name] = tensors[name][:1]
        case "no number":
            tensors[name] = tensors[name] * float("nan")
    with pytest.raises(InvalidUpdateError, match="the plan of client 'c0'"):
        EXACT.train_client(replace(plans["c0"], tensors=tensors), at_work(members[0], QUICK))


def test_the_first_round_starts_from_the_base_model() -> None:
    federation = federation_of(clients(4))
    state = EXACT.init_state(federation, 5)
    assert state == ServerState({}, {"seed": 5})
    plan = EXACT.configure_round(state, federation, 1, deliver=False)["c0"]
    assert plan.kind is RoundKind.TRAIN
    assert plan.tensors == {}
