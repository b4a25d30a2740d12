"""Co-LoRA among clients of the same model: whole LoRAs, mixed for each, gated by each."""

import dataclasses
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel

from backend.contracts.metrics import MetricName
from backend.contracts.params.colora import CoLoraParams
from tests.worker.federated.strategies.factors import dense, random_factors
from tests.worker.federated.strategies.rounds import (
    at_work,
    federation_of,
    plans_of,
    run_round,
    training,
)
from tests.worker.federated.tiny import make_client, make_inputs
from worker.federated.client_round import take
from worker.federated.errors import InvalidUpdateError
from worker.federated.simulation import SimulatedClient, simulate
from worker.federated.strategies.colora import CoLora
from worker.federated.strategies.colora_groups import group_members, lora_mixture
from worker.federated.strategies.colora_received import GATE_START
from worker.federated.types import ClientUpdate, ServerState, Tensors
from worker.federated.wire import decode_private, encode_private, payload_bytes

GLOBAL_RANK = 8
NUM_BLOCKS = 1  # of two layers, so that there are linears without a shared branch


def strategy_with(**changes: Any) -> CoLora:
    return CoLora(CoLoraParams(**{"gauge": "orthonormal", "num_blocks": NUM_BLOCKS, **changes}))


def four() -> list[SimulatedClient]:
    """Three of one model and rank, and one of another model."""
    return [
        make_client("a", rank=4),
        make_client("b", "gpt2", rank=4, width=48, seed=1),
        make_client("c", rank=4, seed=2),
        make_client("d", rank=4, seed=3),
    ]


def after_rounds(
    strategy: CoLora, clients: list[SimulatedClient], count: int
) -> tuple[ServerState, list[ClientUpdate]]:
    state, private = strategy.init_state(federation_of(clients), 1), {}
    updates: list[ClientUpdate] = []
    for number in range(1, count + 1):
        updates = run_round(strategy, state, clients, number, training(), private)
        private = {update.client_id: update.private for update in updates}
        state, _ = strategy.aggregate(state, federation_of(clients), iter(updates))
    return state, updates


@cache
def two_rounds() -> tuple[CoLora, list[SimulatedClient], ServerState, list[ClientUpdate]]:
    """For tests that only look at it; in the second round everybody had received something."""
    strategy, clients = strategy_with(), four()
    return strategy, clients, *after_rounds(strategy, clients, 2)


# Groups and mixtures


def test_groups_are_of_equal_models_and_ranks() -> None:
    clients = [
        *four(),
        make_client("e", rank=2),
        make_client("f", rank=4, num_layers=3),
        make_client("g", rank=4, width=48),
        make_client("h", "gpt2", rank=4, width=48),
    ]
    together = {
        client: set(group) for client, group in group_members(federation_of(clients)).items()
    }
    assert together == {
        **{client: {"a", "c", "d"} for client in "acd"},
        **{client: {"b", "h"} for client in "bh"},
        **{alone: {alone} for alone in "efg"},
    }


@pytest.mark.parametrize("rank", [3, 20])
def test_mixture_is_the_weighted_sum_of_updates_exactly(rank: int) -> None:
    """Also where the ranks add up to more than the shapes can need."""
    specs = [make_client(name).spec() for name in "abc"]
    loras = {spec.client_id: random_factors(spec, rank, seed=5) for spec in specs}
    weights = {"a": 0.2, "b": 0.5, "c": 0.3}
    mixed = lora_mixture(loras, weights)
    products = {name: dense(factors) for name, factors in loras.items()}
    for role, found in dense(mixed).items():
        expected = sum(weights[name] * products[name][role] for name in "abc")
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
        assert mixed[f"A/{role}"].shape[1] == min(3 * rank, *found.shape[1:])
    assert lora_mixture(loras, {}) == {}


def relevance(sketches: dict[str, Tensors], receiver: str, sources: str) -> dict[str, float]:
    """Softmax of the cosines over these sources alone, in NumPy; all have equal roles."""
    flat = {
        name: np.concatenate([parts[role].double().numpy().ravel() for role in sorted(parts)])
        for name, parts in sketches.items()
    }
    unit = {name: vector / np.linalg.norm(vector) for name, vector in flat.items()}
    masses = {name: np.exp(unit[receiver] @ unit[name] / 0.5) for name in sources}
    return {name: mass / sum(masses.values()) for name, mass in masses.items()}


def test_a_client_receives_the_others_of_its_group() -> None:
    strategy, clients, state, updates = two_rounds()
    plans = plans_of(strategy, state, clients, 3)
    sent = {update.client_id: update.shared for update in updates}
    sketches = {name: take("sketch", sent[name]) for name in "acd"}
    for receiver, sources in (("a", "cd"), ("c", "ad"), ("d", "ac")):
        found = dense(take("lora", plans[receiver].tensors))
        weights = relevance(sketches, receiver, sources)
        assert sum(weights.values()) == pytest.approx(1.0)
        products = {name: dense(sent[name]) for name in sources}
        for role in found:
            expected = sum(weights[name] * products[name][role] for name in sources)
            np.testing.assert_allclose(found[role], expected, rtol=1e-4, atol=1e-7)
            assert np.abs(expected).max() > 1e-4
    assert take("lora", plans["b"].tensors) == {}


def test_a_source_that_has_not_sent_yet_is_left_out() -> None:
    strategy, clients = strategy_with(), four()
    state = strategy.init_state(federation_of(clients), 1)
    updates = run_round(strategy, state, clients[:3], 1, training())
    state, _ = strategy.aggregate(state, federation_of(clients), iter(updates))
    plans = plans_of(strategy, state, clients, 2)
    sent = {update.client_id: dense(update.shared) for update in updates}
    for receiver, source in (("a", "c"), ("c", "a")):
        found = dense(take("lora", plans[receiver].tensors))
        for role, product in found.items():
            np.testing.assert_allclose(product, sent[source][role], rtol=1e-4, atol=1e-7)
    late = dense(take("lora", plans["d"].tensors))
    for role, product in late.items():
        expected = (sent["a"][role] + sent["c"][role]) / 2
        np.testing.assert_allclose(product, expected, rtol=1e-4, atol=1e-7)


# The client


def test_the_gate_adds_what_was_received() -> None:
    """One linear of the loaded model against W x + s B A x + sigma(h) dB dA x."""
    strategy, clients, state, updates = two_rounds()
    private = updates[0].private
    plan = plans_of(strategy, state, clients, 3)["a"]
    model = strategy._load(plan, at_work(clients[0], training(), private))
    name = next(n for n in model.received if n not in model.branches)
    module = next(m for m in model.lora.modules if m.name == name)
    received = model.received[name]
    with torch.no_grad():
        received.gate.fill_(0.7)
        x = torch.randn(5, module.in_features, generator=torch.Generator().manual_seed(1))
        found = model.lora.model.get_submodule(name)(x).double().numpy()
    base = clients[0].model.get_submodule(name).weight.detach().double().numpy()
    own = {k: private[f"factors/{k}/{name}"].double().numpy() for k in "AB"}
    lora = take("lora", plan.tensors)
    d_a, d_b = (lora[f"{k}/{module.role}"][module.layer].double().numpy() for k in "AB")
    whole = base + 2.0 * own["B"] @ own["A"] + d_b @ d_a / (1 + np.exp(-0.7))
    np.testing.assert_allclose(found, x.double().numpy() @ whole.T, rtol=1e-4, atol=1e-5)
    assert np.abs(d_b @ d_a).max() > 1e-4


def test_the_own_lora_stays_its_own_and_gates_learn() -> None:
    strategy, clients, state, updates = two_rounds()
    private = {update.client_id: update.private for update in updates}
    idle = run_round(strategy, state, clients, 3, training(local_steps=0), private)
    for before, after in zip(updates, idle, strict=True):
        sent = {name: t for name, t in before.shared.items() if not name.startswith("sketch/")}
        assert all(torch.equal(after.shared[name], tensor) for name, tensor in sent.items())
        kept = {n: t for n, t in before.private.items() if not n.startswith("moments/")}
        assert all(torch.equal(after.private[name], tensor) for name, tensor in kept.items())
    gates = take("branch/lora_gate", private["a"])
    assert len(gates) == 14 and all(gate != GATE_START for gate in gates.values())
    assert take("branch/lora_gate", private["b"]) == {}


def test_gates_stay_until_something_was_received() -> None:
    strategy, clients = strategy_with(), four()
    _, updates = after_rounds(strategy, clients, 1)
    gates = take("branch/lora_gate", updates[0].private)
    assert len(gates) == 14 and all(gate == GATE_START for gate in gates.values())


def test_a_store_survives_saving_and_is_checked() -> None:
    strategy, clients, state, updates = two_rounds()
    kept = decode_private(encode_private(updates[0].private))
    plan = plans_of(strategy, state, clients, 3)["a"]
    logits = []
    for private in (updates[0].private, kept):
        model = strategy._load(plan, at_work(clients[0], training(), private))
        with torch.no_grad():
            logits.append(model.lora.model(**make_inputs("llama")).logits)
        for name, branch in model.received.items():
            assert torch.equal(branch.gate, kept[f"branch/lora_gate/{name}"])
    assert torch.equal(*logits)
    name = next(name for name in kept if name.startswith("branch/lora_gate/"))
    del kept[name]
    with pytest.raises(InvalidUpdateError, match="store of client 'a', these are missing"):
        strategy._load(plan, at_work(clients[0], training(), kept))


# Alone


def test_clients_alone_are_as_without_the_exchange() -> None:
    clients = [make_client("a", rank=4), make_client("b", rank=2, seed=1)]
    outcomes = {
        share: after_rounds(strategy_with(share_lora=share), clients, 2)
        for share in ("same_model", "never")
    }
    (state, updates), (state_without, without) = outcomes.values()
    assert state.tensors.keys() == state_without.tensors.keys()
    assert all(torch.equal(t, state_without.tensors[name]) for name, t in state.tensors.items())
    for one, two in zip(updates, without, strict=True):
        for found, expected in ((one.shared, two.shared), (one.private, two.private)):
            assert found.keys() == expected.keys()
            assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
        assert one.metrics.keys() == two.metrics.keys()


def test_never_shares_no_factor() -> None:
    clients = [make_client("a"), make_client("b", seed=1)]
    strategy = strategy_with(share_lora="never")
    state, updates = after_rounds(strategy, clients, 1)
    for update in updates:
        assert {name.partition("/")[0] for name in update.shared} == {"P", "sketch"}
    assert {name.partition("/")[0] for name in state.tensors} == {"module", "sketch"}
    plan = plans_of(strategy, state, clients, 2)["a"]
    plan.tensors.update({f"lora/{n}": t for n, t in random_factors(clients[0].spec()).items()})
    with pytest.raises(InvalidUpdateError, match="plan of client 'a', unknown are 'lora/"):
        strategy.train_client(plan, at_work(clients[0], training()))


# The wire


def test_bytes_equal_the_formula() -> None:
    """In a group also 4 L r sum_k (in_k + out_k) up, and twice that down among three."""
    _, clients, _, updates = two_rounds()
    for client, update in zip(clients, updates, strict=True):
        spec = client.spec()
        widths = sum(shape.in_features + shape.out_features for shape in spec.modules.values())
        lora = 0 if client.client_id == "b" else 4 * 2 * 4 * widths
        roles = len(spec.modules)
        up = 4 * roles * (NUM_BLOCKS * GLOBAL_RANK**2 + GLOBAL_RANK**2) + lora
        assert payload_bytes(update.shared) == up == update.metrics[MetricName.BYTES_UP_VALUES]
        received = 3 if client.client_id == "b" else roles  # gpt2's qkv is its own
        down = 4 * received * NUM_BLOCKS * GLOBAL_RANK**2 + 2 * lora
        assert update.metrics[MetricName.BYTES_DOWN_VALUES] == down
        if lora:
            assert lora == update.metrics[MetricName.BYTES_LORA]


def test_order_of_clients_is_irrelevant() -> None:
    strategy, clients, state, updates = two_rounds()
    one, two = (
        strategy.aggregate(state, federation_of(clients), iter(order))[0]
        for order in (updates, updates[::-1])
    )
    for left, right in zip(
        plans_of(strategy, one, clients, 3).values(),
        plans_of(strategy, two, clients[::-1], 3).values(),
        strict=True,
    ):
        assert left.client_id == right.client_id
        assert left.tensors.keys() == right.tensors.keys()
        assert all(torch.equal(t, right.tensors[name]) for name, t in left.tensors.items())


def test_factors_that_do_not_fit_are_refused() -> None:
    strategy, clients, state, (a, b, *_) = two_rounds()
    federation = federation_of(clients)
    without = {name: t for name, t in a.shared.items() if name != "A/q"}
    with pytest.raises(InvalidUpdateError, match="update of client 'a', these are missing: 'A/q'"):
        strategy.aggregate(state, federation, iter([dataclasses.replace(a, shared=without)]))
    too_much = {**b.shared, "A/o": torch.zeros(2, 4, 48)}
    with pytest.raises(InvalidUpdateError, match="update of client 'b', unknown are 'A/o'"):
        strategy.aggregate(state, federation, iter([dataclasses.replace(b, shared=too_much)]))
    plan = plans_of(strategy, state, clients, 3)["a"]
    plan.tensors["lora/B/q"] = plan.tensors["lora/B/q"][:, :, 1:]
    with pytest.raises(InvalidUpdateError, match="plan of client 'a', 'B/q'"):
        strategy.train_client(plan, at_work(clients[0], training(), a.private))


# Export


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_export_is_the_model_in_stock_peft(family: str, tmp_path: Path) -> None:
    """Own, shared and received parts as one LoRA of the sum of their ranks."""
    clients = [make_client(name, family, rank=4, seed=n) for n, name in enumerate("abc")]
    params = strategy_with().params
    result = simulate(
        params,
        clients,
        num_rounds=2,
        training=training(),
        global_rank=GLOBAL_RANK,
        seed=2,
        output=tmp_path,
    )
    strategy = CoLora(params)
    plan = strategy.configure_round(result.state, federation_of(clients), 3, deliver=True)["a"]
    model = strategy._load(plan, at_work(clients[0], training(), result.private["a"])).lora.model
    plain = PeftModel.from_pretrained(at_work(clients[0], training()).model, tmp_path / "a").eval()
    config = plain.peft_config["default"]
    assert isinstance(config, LoraConfig)
    assert config.r == 4 + GLOBAL_RANK + 2 * 4
    with torch.no_grad():
        expected = model(**make_inputs(family)).logits
        found = plain(**make_inputs(family)).logits
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        without = CoLora(params.model_copy(update={"share_lora": "never"}))
        kept = {n: t for n, t in result.private["a"].items() if "lora_gate" not in n}
        bare = without.configure_round(result.state, federation_of(clients), 3, deliver=True)["a"]
        alone = without._load(bare, at_work(clients[0], training(), kept)).lora.model
        assert not torch.allclose(alone(**make_inputs(family)).logits, expected, atol=1e-3)
