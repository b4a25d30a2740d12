"""Rounds of the LoRA baselines on real models: what clients train, send, keep and deliver."""

import dataclasses
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from torch import nn
from transformers.pytorch_utils import Conv1D

from backend.contracts.metrics import MetricName
from backend.contracts.params.lora import (
    FedExLoraParams,
    FedItParams,
    FedPLoraParams,
    FedSaLoraParams,
    FfaLoraParams,
    FloraParams,
    FloristParams,
)
from backend.contracts.strategies import Params
from tests.worker.federated.strategies.rounds import (
    at_work,
    federation_of,
    plans_of,
    training,
)
from tests.worker.federated.tiny import make_client, make_data, make_inputs
from worker.federated.client_round import take
from worker.federated.errors import InvalidUpdateError, UnsupportedModelError
from worker.federated.low_rank import LowRank
from worker.federated.objectives.classification import HeadObjective, TextInputs
from worker.federated.roles import adapted_modules
from worker.federated.simulation import SimulatedClient
from worker.federated.strategies.lora_client import load_lora
from worker.federated.strategies.registry import build_strategy
from worker.federated.strategy import Strategy
from worker.federated.types import ClientPlan, ClientUpdate, LocalClient, ServerState, Tensors
from worker.federated.wire import payload_bytes

ALL = [
    FedItParams(),
    FfaLoraParams(),
    FedSaLoraParams(),
    FedExLoraParams(),
    FloraParams(),
    FedPLoraParams(),
]
QUICK = training(local_steps=2, evaluate_every=100)


class Run:
    """A federation that is run round by round, with the models at hand that were trained."""

    def __init__(self, params: Params, clients: list[SimulatedClient]) -> None:
        self.clients = clients
        self.strategy: Strategy = build_strategy(params)
        self.federation = federation_of(clients)
        self.state: ServerState = self.strategy.init_state(self.federation, 1)
        self.private: dict[str, Tensors] = {}
        self.trained: dict[str, LocalClient] = {}
        self.updates: list[ClientUpdate] = []
        self.report: dict[str, float] = {}
        self.number = 0

    def plan(self, client_id: str) -> ClientPlan:
        return plans_of(self.strategy, self.state, self.clients, self.number + 1)[client_id]

    def train(self, client: SimulatedClient, config=QUICK) -> ClientUpdate:
        local = at_work(client, config, self.private.get(client.client_id))
        self.trained[client.client_id] = local
        return self.strategy.train_client(self.plan(client.client_id), local)

    def round(self, *senders: SimulatedClient) -> None:
        self.updates = [self.train(client) for client in senders or self.clients]
        self.private = {update.client_id: update.private for update in self.updates}
        self.state, report = self.strategy.aggregate(
            self.state, self.federation, iter(self.updates)
        )
        self.report = dict(report.values)
        self.number += 1

    def deliver(self, client: SimulatedClient, folder: Path) -> PeftModel:
        """What stock PEFT makes of the delivered folder on a fresh base model."""
        plans = self.strategy.configure_round(
            self.state, self.federation, self.number + 1, deliver=True
        )
        local = at_work(client, QUICK, self.private.get(client.client_id))
        self.strategy.deliver_client(plans[client.client_id], local, folder)
        return PeftModel.from_pretrained(at_work(client, QUICK).model, folder).eval()


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(**make_inputs("llama")).logits


def plain_weight(layer: nn.Module) -> torch.Tensor:
    """(out_features, in_features), fp64, whatever way the layer stores it."""
    weight = layer.get_parameter("weight").detach().double()
    return weight.T if isinstance(layer, Conv1D) else weight


def update_of(client: SimulatedClient, model: nn.Module) -> dict[str, torch.Tensor]:
    """What a model with LoRA in place adds to the client's base model, by module, dense."""
    found = {}
    for module in adapted_modules(client.model):
        layer = model.get_submodule(module.name)
        a, b = (layer.get_parameter(f"lora_{x}.default.weight").detach().double() for x in "AB")
        written = plain_weight(layer.base_layer)
        untouched = plain_weight(client.model.get_submodule(module.name))
        found[module.name] = written - untouched + layer.scaling["default"] * b @ a
    return found


def relative_error(found: dict[str, torch.Tensor], exact: dict[str, torch.Tensor]) -> float:
    missed = sum(float((found[name] - exact[name]).pow(2).sum()) for name in exact)
    return (missed / sum(float(tensor.pow(2).sum()) for tensor in exact.values())) ** 0.5


def mean_update(run: Run) -> dict[str, torch.Tensor]:
    total = sum(update.num_examples for update in run.updates)
    weights = {update.client_id: update.num_examples / total for update in run.updates}
    parts = {c.client_id: update_of(c, run.trained[c.client_id].model) for c in run.clients}
    return {
        name: sum(weights[client_id] * part[name] for client_id, part in parts.items())
        for name in next(iter(parts.values()))
    }


def pair(family: str, rank_a: int = 4, rank_b: int = 4) -> list[SimulatedClient]:
    """One base model; data, numbers of examples and `lora_alpha` differ."""
    one = make_client("a", family, rank=rank_a)
    two = make_client("b", family, rank=rank_b)
    two = dataclasses.replace(two, lora_alpha=1.0 * rank_b, data=make_data(num_train=8, seed=1))
    return [one, two]


@pytest.mark.parametrize("params", ALL)
def test_a_client_alone_delivers_its_own_function(params: Params, tmp_path: Path) -> None:
    client = make_client(rank=3, num_train=8)
    run = Run(params, [client])
    run.round()
    run.round()
    own = logits(run.trained["a"].model)
    assert (own - logits(client.model)).abs().max() > 1e-3
    loaded = run.deliver(client, tmp_path)
    torch.testing.assert_close(logits(loaded), own, atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("params", [FfaLoraParams(), FedExLoraParams(), FloraParams()])
def test_what_exact_strategies_deliver_is_the_mean_of_what_clients_trained(
    params: Params, family: str, tmp_path: Path
) -> None:
    clients = pair(family, 4, 2 if isinstance(params, FloraParams) else 4)
    run = Run(params, clients)
    for number in (1, 2):
        run.round()
        for client in clients:
            loaded = run.deliver(client, tmp_path / f"{number}{client.client_id}")
            found = update_of(client, loaded.get_base_model())
            assert relative_error(found, mean_update(run)) <= 1e-5, (number, client.client_id)


def test_fedit_misses_the_mean_by_what_its_report_says(tmp_path: Path) -> None:
    clients = pair("llama")
    run = Run(FedItParams(), clients)
    run.round()
    run.round()
    found = update_of(clients[0], run.deliver(clients[0], tmp_path).get_base_model())
    error = relative_error(found, mean_update(run))
    assert error > 1e-3
    assert run.report["cross_term_error"] == pytest.approx(error, rel=1e-3)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_plora_clients_of_any_rank_start_from_the_same_function(
    family: str, tmp_path: Path
) -> None:
    clients = pair(family, 6, 2)
    run = Run(FedPLoraParams(), clients)
    run.round()
    loaded = [run.deliver(client, tmp_path / client.client_id) for client in clients]
    expected = logits(loaded[0])
    torch.testing.assert_close(logits(loaded[1]), expected, atol=1e-5, rtol=0)
    assert (expected - logits(clients[0].model)).abs().max() > 1e-3
    for client in clients:
        run.train(client, training(local_steps=0, evaluate_every=100))
        started = logits(run.trained[client.client_id].model)
        torch.testing.assert_close(started, expected, atol=1e-5, rtol=0)


def test_fedsa_takes_a_from_all_and_leaves_b_as_it_was() -> None:
    clients = pair("llama")
    run = Run(FedSaLoraParams(), clients)
    run.round()
    assert all(name.startswith("A/") for update in run.updates for name in update.shared)
    kept = {client_id: take("factors", private) for client_id, private in run.private.items()}
    assert all(name.startswith("B/") for factors in kept.values() for name in factors)
    for client in clients:
        idle = run.train(client, training(local_steps=0, evaluate_every=100))
        assert {name: t.tolist() for name, t in take("factors", idle.private).items()} == {
            name: t.tolist() for name, t in kept[client.client_id].items()
        }
        assert {n: t.tolist() for n, t in idle.shared.items()} == {
            n: t.tolist() for n, t in run.state.tensors.items()
        }


def test_ffa_freezes_the_same_a_everywhere_and_never_sends_it() -> None:
    clients = pair("llama")
    run = Run(FfaLoraParams(), clients)
    seen = []
    for _ in range(2):
        assert all(name.startswith("B/") for name in run.plan("a").tensors)
        run.round()
        assert all(name.startswith("B/") for update in run.updates for name in update.shared)
        for local in run.trained.values():
            named = dict(local.model.named_parameters())
            seen.append({name: t for name, t in named.items() if ".lora_A." in name})
    assert all(torch.equal(seen[0][name], other[name]) for other in seen[1:] for name in seen[0])


@pytest.mark.parametrize("params", ALL)
def test_measured_bytes_follow_the_formulas(params: Params) -> None:
    """4 bytes a value; L = 2, roles of Llama at width 32 with 16 wide keys and values."""
    s_in, s_out = 6 * 32 + 48, 32 + 16 + 16 + 32 + 48 + 48 + 32
    both, layers = s_in + s_out, 2 * 4
    different = isinstance(params, FloraParams | FedPLoraParams)
    ranks = (4, 2) if different else (4, 4)
    run = Run(params, pair("llama", *ranks))
    run.round()
    expected_up = {
        "ffa_lora": layers * 4 * s_out,
        "fedsa_lora": layers * 4 * s_in,
    }.get(params.name, layers * ranks[0] * both)
    expected_down = {
        "fedex_lora": layers * (4 + 4) * both,  # factors, and a residual of rank (N - 1) r
        "flora": layers * (4 + 2) * both,
    }.get(params.name, expected_up)
    update = run.train(run.clients[0])
    assert update.metrics[MetricName.BYTES_UP_VALUES] == expected_up
    assert update.metrics[MetricName.BYTES_DOWN_VALUES] == expected_down
    assert payload_bytes(update.shared) == expected_up
    assert update.metrics[MetricName.BYTES_UP] > expected_up  # names and header


@pytest.mark.parametrize("params", [FedExLoraParams(), FloraParams()])
def test_who_missed_a_round_gets_all_changes_of_the_base(params: Params, tmp_path: Path) -> None:
    clients = pair("gpt2")
    run = Run(params, clients)
    run.round()
    run.round()
    run.round(clients[0])
    present, absent = run.plan("a"), run.plan("b")
    assert not take("earlier", present.tensors)
    assert take("earlier", absent.tensors)
    loaded = [run.deliver(client, tmp_path / client.client_id) for client in clients]
    torch.testing.assert_close(logits(loaded[1]), logits(loaded[0]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("params", [FedExLoraParams(), FloraParams(), FloristParams()])
def test_rounds_of_which_a_group_sees_nothing_are_no_lost_changes(
    params: Params, tmp_path: Path
) -> None:
    run = Run(params, pair("llama"))
    before = run.deliver(run.clients[0], tmp_path / "before")
    torch.testing.assert_close(logits(before), logits(at_work(run.clients[0], QUICK).model))
    run.number = 2  # as where sampling drew other groups only
    run.round()
    run.round()
    run.round()
    learned = logits(run.deliver(run.clients[0], tmp_path / "after"))
    assert float((learned - logits(before)).abs().max()) > 1e-4


@pytest.mark.parametrize("params", [FedExLoraParams(), FloraParams()])
def test_a_client_that_lost_its_store_says_so(params: Params) -> None:
    run = Run(params, [make_client(num_train=8)])
    run.round()
    run.round()
    run.private = {}
    with pytest.raises(InvalidUpdateError, match="restore the store"):
        run.train(run.clients[0])


@pytest.mark.parametrize("params", ALL)
def test_moments_stay_where_factors_go_on_and_go_where_they_do_not(params: Params) -> None:
    client = make_client(num_train=8)
    run = Run(params, [client])
    run.round()
    letters = {name[0] for name in take("moments", run.private["a"])}
    expected = {"ffa_lora": {"B"}, "flora": set(), "fed_plora": set()}
    assert letters == expected.get(params.name, {"A", "B"})


def test_a_head_stays_with_its_client(tmp_path: Path) -> None:
    def bind(model, config) -> HeadObjective:
        return HeadObjective(model, TextInputs(client.tokenizer, 32), ("no", "yes"))

    client = make_client("a", "bert", num_train=8)
    client = dataclasses.replace(client, bind_objective=bind)
    for params in (FedItParams(), FloraParams()):
        run = Run(params, [client])
        run.round()
        start = client.model.classifier.weight
        assert not torch.equal(take("head", run.private["a"])["classifier.weight"], start)
        assert "head/classifier.weight/exp_avg" in take("moments", run.private["a"])
        assert not any("classifier" in n for n in (*run.state.tensors, *run.updates[0].shared))
        head = take("head", run.private["a"])
        loaded = run.deliver(client, tmp_path / params.name)
        saved = dict(loaded.named_parameters())
        name = "base_model.model.classifier.modules_to_save.default.weight"
        assert torch.equal(saved[name], head["classifier.weight"])


def test_quantised_base_weights_are_not_written_to() -> None:
    client = make_client()
    run = Run(FloraParams(), [client])
    lora = load_lora(run.plan("a"), at_work(client, QUICK))
    module = lora.modules[0]
    layer = lora.model.get_submodule(f"{module.name}.base_layer")
    layer.weight = nn.Parameter(torch.zeros(8, dtype=torch.uint8), requires_grad=False)
    product = LowRank(torch.ones(2, 1, module.in_features), torch.ones(2, module.out_features, 1))
    with pytest.raises(UnsupportedModelError, match="quantization 'none'"):
        lora.add_to_base({module.role: product})
