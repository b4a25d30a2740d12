"""What Co-LoRA promises, derived by hand or in NumPy."""

import dataclasses
import itertools
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel

from backend.contracts.enums import TaskKind
from backend.contracts.metrics import MetricName
from backend.contracts.params.colora import CoLoraParams
from tests.worker.federated.strategies.rounds import (
    at_work,
    federation_of,
    plans_of,
    run_round,
    training,
)
from tests.worker.federated.tiny import make_client, make_inputs
from worker.federated.client_round import take
from worker.federated.errors import InvalidConfigError, InvalidUpdateError
from worker.federated.simulation import SimulatedClient, simulate
from worker.federated.strategies.colora import CoLora
from worker.federated.strategies.colora_client import ClientModel, SharedBranch
from worker.federated.strategies.colora_mixing import cosine, mixing_weights, mixture
from worker.federated.types import ClientUpdate, ServerState
from worker.federated.wire import payload_bytes

RANK = 8


def strategy_with(**changes: Any) -> CoLora:
    """Unaligned factors: as good as aligned ones for everything but their meaning, and quicker."""
    return CoLora(CoLoraParams(**{"gauge": "orthonormal", "num_blocks": 2, **changes}))


def three() -> list[SimulatedClient]:
    """Depths 4, 2, 3; ranks 8, 4, 2; seven roles, seven and four."""
    return [
        make_client("a", rank=8, num_layers=4),
        make_client("b", "gemma", rank=4, width=48, seed=1, num_train=12),
        make_client("c", "gpt2", num_layers=3, rank=2, seed=2, num_train=20),
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
def one_round() -> tuple[CoLora, list[SimulatedClient], ServerState, list[ClientUpdate]]:
    """One round of all three, for tests that only look at it."""
    strategy, clients = strategy_with(), three()
    return strategy, clients, *after_rounds(strategy, clients, 1)


def loaded(
    strategy: CoLora,
    state: ServerState,
    clients: list[SimulatedClient],
    client: SimulatedClient,
    private: Any,
    number: int = 2,
) -> ClientModel:
    plan = plans_of(strategy, state, clients, number)[client.client_id]
    return strategy._load(plan, at_work(client, training(), private))


# Mixing


def test_weights_are_a_softmax_of_cosines_without_oneself() -> None:
    source = torch.Generator().manual_seed(0)
    sketches = {
        name: {"q": torch.randn(3, 3, generator=source), "v": torch.randn(3, 3, generator=source)}
        for name in "abcd"
    }
    flat = {n: torch.cat([s["q"], s["v"]]).flatten().numpy() for n, s in sketches.items()}
    for receiver in "abcd":
        others = [name for name in "abcd" if name != receiver]
        angles = np.array(
            [
                flat[receiver] @ flat[o] / np.linalg.norm(flat[receiver]) / np.linalg.norm(flat[o])
                for o in others
            ]
        )
        expected = np.exp(angles / 0.5) / np.exp(angles / 0.5).sum()
        weights = mixing_weights(sketches, receiver, 0.5)
        assert list(weights) == others
        np.testing.assert_allclose(list(weights.values()), expected, rtol=1e-5)


def test_weights_at_the_edges() -> None:
    one = torch.eye(2)
    sketches = {"a": {"q": one}, "b": {"q": one}, "c": {"q": -one}, "d": {"qkv": one}}
    assert mixing_weights(sketches, "late", 0.5) == pytest.approx(dict.fromkeys("abcd", 0.25))
    assert mixing_weights({"a": {"q": one}}, "a", 0.5) == {}
    related = mixing_weights(sketches, "a", 0.01)
    assert related["b"] == pytest.approx(1.0)
    alike = mixing_weights(sketches, "a", 1e6)
    assert alike == pytest.approx(dict.fromkeys("bcd", 1 / 3), abs=1e-5)
    assert cosine(sketches["a"], sketches["d"]) == 0.0, "no role in common"
    assert cosine({"q": one}, {"q": 0 * one}) == 0.0


def test_mixture_averages_each_role_over_those_who_have_it() -> None:
    modules = {
        "a": {"P/q": torch.full((1, 2, 2), 4.0)},
        "b": {"P/q": torch.full((1, 2, 2), 8.0), "P/v": torch.full((1, 2, 2), 1.0)},
    }
    mixed = mixture(modules, {"a": 0.25, "b": 0.75})
    torch.testing.assert_close(mixed["P/q"], torch.full((1, 2, 2), 7.0))
    torch.testing.assert_close(mixed["P/v"], torch.full((1, 2, 2), 1.0))
    assert mixture(modules, {}) == {}


def test_every_client_gets_its_own_mixture_of_the_others() -> None:
    strategy, clients, state, updates = one_round()
    sent = {update.client_id: update.shared for update in updates}
    sketches = {name: take("sketch", shared) for name, shared in sent.items()}
    plans = plans_of(strategy, state, clients, 2)
    for receiver, plan in plans.items():
        weights = mixing_weights(sketches, receiver, 0.5)
        assert receiver not in weights
        own_roles = {f"P/{role}" for role in strategy_roles(clients, receiver)}
        assert plan.tensors.keys() == {
            name for o in weights for name in sent[o] if name in own_roles
        }
        for name, received in plan.tensors.items():
            having = {o: w for o, w in weights.items() if name in sent[o]}
            expected = sum(w * sent[o][name].double().numpy() for o, w in having.items())
            expected = expected / sum(having.values())
            np.testing.assert_allclose(received.numpy(), expected, rtol=1e-5, atol=1e-9)
    assert not torch.equal(plans["a"].tensors["P/up"], plans["b"].tensors["P/up"])


def strategy_roles(clients: list[SimulatedClient], client_id: str) -> set[str]:
    return set(next(c for c in clients if c.client_id == client_id).spec().modules)


def test_report_has_the_weight_of_every_pair() -> None:
    strategy, clients, state, updates = one_round()
    _, report = strategy.aggregate(state, federation_of(clients), iter(updates))
    weights = {k: v for k, v in report.values.items() if k.startswith("mixing_weight/")}
    assert weights.keys() == {f"mixing_weight/{i}/{j}" for i, j in itertools.permutations("abc", 2)}
    for receiver in "abc":
        row = [v for k, v in weights.items() if k.startswith(f"mixing_weight/{receiver}/")]
        assert sum(row) == pytest.approx(1.0)
    assert -1 <= report.values["sketch_cosine"] <= 1


# The client


def test_branch_equals_the_formula() -> None:
    """y = W x + s B ((P + sigma(g) P') A x + q + sigma(g) q'), in NumPy."""
    strategy, client = strategy_with(offset=True), make_client(rank=4)
    model = loaded(
        strategy, strategy.init_state(federation_of([client]), 1), [client], client, None
    )
    branch = next(iter(model.branches.values()))
    assert isinstance(branch, SharedBranch)
    source = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for tensor in (branch.core, branch.offset, branch.received_core, branch.received_offset):
            assert tensor is not None
            tensor.copy_(torch.randn(tensor.shape, generator=source))
        branch.gate.fill_(0.3)
    x = torch.randn(5, 32, generator=source)
    parts = {n: t.detach().double().numpy() for n, t in {**branch.state_dict(), "x": x}.items()}
    gate = 1 / (1 + np.exp(-0.3))
    core = parts["core"] + gate * parts["received_core"]
    offset = parts["offset"] + gate * parts["received_offset"]
    moved = core @ parts["in_factor"] @ parts["x"].T + offset[:, None]
    expected = parts["base_layer.weight"] @ parts["x"].T + 2.0 * parts["out_factor"] @ moved
    np.testing.assert_allclose(branch(x).detach().numpy(), expected.T, rtol=1e-4, atol=1e-5)


def test_shared_modules_sit_at_block_ends() -> None:
    strategy, clients = strategy_with(), three()
    state = strategy.init_state(federation_of(clients), 1)
    places = {}
    for client in clients:
        model = loaded(strategy, state, clients, client, None)
        places[client.client_id] = sorted({m.layer for m in model.modules.values()})
    assert places == {"a": [1, 3], "b": [0, 1], "c": [1, 2]}


def test_a_fresh_adapter_changes_nothing_and_everything_trains() -> None:
    strategy, client = strategy_with(), make_client(rank=4)
    state = strategy.init_state(federation_of([client]), 1)
    (update,) = run_round(strategy, state, [client], 1, training())
    untrained = client.objective(training()).mean_loss(client.model, client.data.validation)
    assert update.metrics[MetricName.VALIDATION_LOSS_BEFORE_TRAINING] == pytest.approx(untrained)
    assert all(t.any() for name, t in update.shared.items() if name.startswith("P/"))
    assert all(t.any() for name, t in update.private.items() if name.startswith("factors/B/"))


def test_aligned_factors_are_made_once_and_never_train() -> None:
    strategy, client = strategy_with(), make_client(rank=4)
    state = strategy.init_state(federation_of([client]), 1)
    fresh = loaded(strategy, state, [client], client, None, number=1).frozen()
    _, (update,) = after_rounds(strategy, [client], 3)
    kept = take("aligned", update.private)
    assert kept.keys() == fresh.keys()
    assert all(torch.equal(kept[name], fresh[name]) for name in fresh)


def test_a_client_alone_keeps_its_own_function() -> None:
    strategy, client = strategy_with(offset=True), make_client(rank=4)
    state = strategy.init_state(federation_of([client]), 1)
    plan = plans_of(strategy, state, [client], 1)["a"]
    local = at_work(client, training())
    update = strategy.train_client(plan, local)  # leaves the trained model in `local`
    state, report = strategy.aggregate(state, federation_of([client]), iter([update]))
    assert not any(name.startswith("mixing_weight") for name in report.values)
    model = loaded(strategy, state, [client], client, update.private)
    with torch.no_grad():
        now = model.lora.model(**make_inputs("llama")).logits
        assert torch.equal(now, local.model(**make_inputs("llama")).logits)
        assert not torch.equal(now, client.model(**make_inputs("llama")).logits)


def test_received_modules_count_as_much_as_the_gate_says() -> None:
    strategy, clients, state, updates = one_round()
    private = next(u.private for u in updates if u.client_id == "a")
    model = loaded(strategy, state, clients, clients[0], private)
    with torch.no_grad():
        mixed = model.lora.model(**make_inputs("llama")).logits
        for branch in model.branches.values():
            branch.gate.fill_(-100.0)
        alone = model.lora.model(**make_inputs("llama")).logits
    assert not torch.allclose(mixed, alone, atol=1e-6)


# The wire


@pytest.mark.parametrize("offset", [False, True])
def test_bytes_equal_the_formula(offset: bool) -> None:
    """Up 4 m (N_B (R^2 [+ R]) + R^2), down the same without sketches, of the roles others have."""
    strategy, clients = strategy_with(offset=offset), three()
    state, updates = after_rounds(strategy, clients, 2)
    entries = RANK**2 + (RANK if offset else 0)
    for update in updates:
        roles = len(strategy_roles(clients, update.client_id))
        up = 4 * roles * (2 * entries + RANK**2)
        assert payload_bytes(update.shared) == up == update.metrics[MetricName.BYTES_UP_VALUES]
        received = 7 if update.client_id != "c" else 3  # gpt2 shares o, up and down; not qkv
        assert update.metrics[MetricName.BYTES_DOWN_VALUES] == 4 * received * 2 * entries
    assert "codes" not in state.tensors


def test_private_parts_never_travel() -> None:
    _, _, state, updates = one_round()
    for update in updates:
        assert {name.partition("/")[0] for name in update.shared} == {"P", "sketch"}
        prefixes = {name.partition("/")[0] for name in update.private}
        assert prefixes == {"factors", "branch", "aligned", "moments"}
    assert {name.partition("/")[0] for name in state.tensors} == {"module", "sketch"}


def test_idle_rounds_leave_every_module_as_it_is() -> None:
    strategy, clients, state, updates = one_round()
    private = {update.client_id: update.private for update in updates}
    idle = run_round(strategy, state, clients, 2, training(local_steps=0), private)
    after, report = strategy.aggregate(state, federation_of(clients), iter(idle))
    before = take("module", state.tensors)
    assert all(torch.equal(t, before[n]) for n, t in take("module", after.tensors).items())
    assert report.values["relative_change"] == 0.0


def test_order_of_clients_is_irrelevant() -> None:
    strategy, clients, state, updates = one_round()
    one, two = (
        strategy.aggregate(state, federation_of(clients), iter(order))
        for order in (updates, updates[::-1])
    )
    assert one[0].tensors.keys() == two[0].tensors.keys()
    assert all(torch.equal(t, two[0].tensors[name]) for name, t in one[0].tensors.items())
    assert one[1].values == two[1].values


def test_a_client_that_misses_a_round_stays_a_source() -> None:
    strategy, clients, state, updates = one_round()
    after, report = strategy.aggregate(state, federation_of(clients), iter(updates[:1]))
    assert report.num_clients == 1
    assert "mixing_weight/a/c" in report.values
    assert plans_of(strategy, after, clients, 3)["c"].tensors.keys() == {"P/o", "P/up", "P/down"}


def test_a_sketch_is_a_direction_with_noise_of_known_size() -> None:
    client = make_client(rank=4)
    sketches = {}
    for noise in (0.0, 0.5):
        strategy = strategy_with(sketch_noise=noise)
        state = strategy.init_state(federation_of([client]), 1)
        (update,) = run_round(strategy, state, [client], 1, training(local_steps=0))
        parts = take("sketch", update.shared)
        sketches[noise] = torch.cat([part.flatten() for part in parts.values()])
    assert float(sketches[0.0].norm()) == pytest.approx(1.0, abs=1e-5)
    assert float((sketches[0.5] - sketches[0.0]).norm()) == pytest.approx(0.5, abs=0.1)


def test_updates_and_stores_that_do_not_fit_are_refused() -> None:
    strategy, clients, state, (a, b, c) = one_round()
    federation = federation_of(clients)
    foreign = dataclasses.replace(a, shared=c.shared)
    with pytest.raises(InvalidUpdateError, match="update of client 'a', these are missing"):
        strategy.aggregate(state, federation, iter([foreign]))
    with pytest.raises(InvalidUpdateError, match="store of client 'a'"):
        loaded(strategy, state, clients, clients[0], b.private)
    plan = plans_of(strategy, state, clients, 2)["a"]
    plan.tensors["P/q"] = torch.zeros(2, 3, 3)
    with pytest.raises(InvalidUpdateError, match="plan of client 'a', 'P/q'"):
        strategy.train_client(plan, at_work(clients[0], training(), a.private))
    plan = plans_of(strategy, state, clients, 2)["a"]
    plan.tensors["P/secret"] = torch.zeros(2, RANK, RANK)
    with pytest.raises(InvalidUpdateError, match="plan of client 'a', unknown are 'P/secret'"):
        strategy.train_client(plan, at_work(clients[0], training(), a.private))


# The gauge


def test_probe_gauge_aligns_codes_and_sends_them_once() -> None:
    strategy = strategy_with(gauge="probe")
    client = make_client("b", "gpt2", rank=4, width=48)
    federation = federation_of([client], global_rank=4)
    state = strategy.init_state(federation, 1)
    (plan,) = strategy.configure_round(state, federation, 1, deliver=False).values()
    assert plan.tensors["codes"].shape[1] == 4
    update = strategy.train_client(plan, at_work(client, training()))
    name = "transformer.h.1.attn.c_attn"
    assert update.private[f"aligned/in/{name}"].shape == (4, 48)
    assert update.private[f"aligned/out/{name}"].shape == (144, 4)
    state, _ = strategy.aggregate(state, federation, iter([update]))
    (plan,) = strategy.configure_round(state, federation, 2, deliver=False).values()
    assert "codes" not in plan.tensors
    with pytest.raises(InvalidConfigError, match="lost its store"):
        strategy.train_client(plan, at_work(client, training()))


def test_pictures_need_the_other_gauge() -> None:
    federation = federation_of([make_client("a", rank=4)])
    seen = dataclasses.replace(federation.clients[0], task=TaskKind.IMAGE_CLASSIFICATION)
    pictures = dataclasses.replace(federation, clients=(seen,))
    (refusal,) = strategy_with(gauge="probe").check(pictures)
    assert "choose gauge 'orthonormal'" in refusal.reason
    assert strategy_with().check(pictures) == []


# Export


@pytest.mark.parametrize(
    ("family", "offset"), [("llama", False), ("gpt2", False), ("gpt2", True), ("opt", True)]
)
def test_export_is_the_model_in_stock_peft(family: str, offset: bool, tmp_path: Path) -> None:
    """With offsets too, in families whose linears have biases; there it can even be merged."""
    client = make_client("a", family, rank=4, num_layers=3)
    other = make_client("b", family, rank=2, width=48, seed=1, num_train=8)
    params = strategy_with(offset=offset).params
    result = simulate(
        params,
        [client, other],
        num_rounds=2,
        training=training(),
        global_rank=RANK,
        seed=2,
        output=tmp_path,
    )
    strategy, federation = CoLora(params), federation_of([client, other])
    plan = strategy.configure_round(result.state, federation, 3, deliver=True)["a"]
    model = strategy._load(plan, at_work(client, training(), result.private["a"])).lora.model
    plain = PeftModel.from_pretrained(at_work(client, training()).model, tmp_path / "a").eval()
    config = plain.peft_config["default"]
    assert isinstance(config, LoraConfig)
    assert (config.r, config.lora_bias) == (4 + RANK, offset)
    with torch.no_grad():
        expected = model(**make_inputs(family)).logits
        untrained = client.model(**make_inputs(family)).logits
        torch.testing.assert_close(
            plain(**make_inputs(family)).logits, expected, rtol=1e-4, atol=1e-5
        )
        merged = plain.merge_and_unload()
        torch.testing.assert_close(
            merged(**make_inputs(family)).logits, expected, rtol=1e-4, atol=1e-5
        )
    assert not torch.allclose(expected, untrained, atol=1e-3)


def test_offsets_on_a_model_without_biases_load_but_cannot_be_merged(tmp_path: Path) -> None:
    client = make_client(rank=4)
    simulate(
        strategy_with(offset=True).params,
        [client],
        num_rounds=1,
        training=training(),
        global_rank=RANK,
        seed=2,
        output=tmp_path,
    )
    with pytest.warns(UserWarning, match="has no bias"):
        plain = PeftModel.from_pretrained(at_work(client, training()).model, tmp_path / "a")
    with pytest.raises(RuntimeError, match="Impossible to merge"):
        plain.merge_and_unload()
