"""The gate of every strategy: each one against every way in which clients can differ."""

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel

from backend.contracts.enums import StrategyName
from backend.contracts.metrics import MetricName
from backend.contracts.params.colora import CoLoraParams
from backend.contracts.params.h2tune import H2TuneParams
from backend.contracts.params.heterotune import HeteroTuneParams
from backend.contracts.params.lora import (
    FedExLoraParams,
    FedItParams,
    FedPLoraParams,
    FedSaLoraParams,
    FfaLoraParams,
    FlexLoraParams,
    FloraParams,
    FloristParams,
    HetLoraParams,
    LocalOnlyParams,
)
from backend.contracts.strategies import Params, describe_strategies
from tests.worker.federated.strategies.rounds import at_work, federation_of, training
from tests.worker.federated.tiny import make_client, make_inputs
from worker.federated.adapters import FedAdapterConfig
from worker.federated.simulation import SimulatedClient, simulate
from worker.federated.strategies.registry import STRATEGIES, build_strategy

PARAMS: dict[StrategyName, Params] = {
    StrategyName.LOCAL_ONLY: LocalOnlyParams(),
    StrategyName.H2TUNE: H2TuneParams(),
    StrategyName.FEDIT: FedItParams(),
    StrategyName.FFA_LORA: FfaLoraParams(),
    StrategyName.FEDSA_LORA: FedSaLoraParams(),
    StrategyName.FEDEX_LORA: FedExLoraParams(),
    StrategyName.FLORA: FloraParams(),
    StrategyName.FED_PLORA: FedPLoraParams(),
    StrategyName.HETLORA: HetLoraParams(),
    StrategyName.FLEXLORA: FlexLoraParams(),
    StrategyName.FLORIST: FloristParams(),
    StrategyName.HETEROTUNE: HeteroTuneParams(),
    StrategyName.COLORA: CoLoraParams(),
}

SHAPES = {"widths", "depths", "families"}
REFUSED: dict[StrategyName, set[str]] = {
    StrategyName.FEDIT: SHAPES | {"ranks"},
    StrategyName.FFA_LORA: SHAPES | {"ranks"},
    StrategyName.FEDSA_LORA: SHAPES | {"ranks"},
    StrategyName.FEDEX_LORA: SHAPES | {"ranks"},
    StrategyName.FLORA: SHAPES,
    StrategyName.FED_PLORA: SHAPES,
    StrategyName.HETLORA: SHAPES,
    StrategyName.FLEXLORA: SHAPES,
    StrategyName.FLORIST: SHAPES,
}
"""Differences that a strategy has to refuse; all others it has to serve."""


def same() -> list[SimulatedClient]:
    return [make_client("a", rank=8), make_client("b", rank=8, seed=1)]


def ranks() -> list[SimulatedClient]:
    return [make_client("a", rank=8), make_client("b", rank=2, seed=1)]


def widths() -> list[SimulatedClient]:
    return [make_client("a", rank=8), make_client("b", rank=8, width=48, seed=1)]


def depths() -> list[SimulatedClient]:
    return [make_client("a", rank=8, num_layers=3), make_client("b", rank=8, seed=1)]


def families() -> list[SimulatedClient]:
    return [
        make_client("a", "llama", rank=8, num_layers=3),
        make_client("b", "gpt2", rank=4, width=48, seed=1),
        make_client("c", "phi3", rank=2, seed=2),
    ]


def test_contracts_and_registry_name_the_same_strategies() -> None:
    assert list(STRATEGIES) == list(StrategyName) == [info.name for info in describe_strategies()]
    assert list(PARAMS) == list(StrategyName)


WAYS = [same, ranks, widths, depths, families]
SERVED = [(n, way) for n in StrategyName for way in WAYS if way.__name__ not in REFUSED.get(n, ())]
NOT_SERVED = [(n, way) for n in StrategyName for way in WAYS if (n, way) not in SERVED]


@pytest.mark.parametrize(("name", "clients"), SERVED)
def test_strategy_serves_clients_that_differ(name: StrategyName, clients, tmp_path: Path) -> None:
    members = clients()
    assert build_strategy(PARAMS[name]).check(federation_of(members)) == []
    result = simulate(
        PARAMS[name],
        members,
        num_rounds=2,
        training=training(),
        global_rank=8,
        seed=3,
        output=tmp_path,
    )
    for number, done in enumerate(result.rounds, start=1):
        assert done.report.num_clients == len(members)
        for client in members:
            metrics = done.metrics[client.client_id]
            assert 0 <= metrics[MetricName.ACCURACY_AFTER_TRAINING] <= 1
            changes = {MetricName.PRIVATE_CHANGE, MetricName.SHARED_CHANGE} & metrics.keys()
            assert changes, number
            # In the probe gauge H2Tune trains shared matrices alone.
            assert any(metrics[change] > 0 for change in changes), number
            assert metrics[MetricName.BYTES_LORA] > 0
    for client in members:
        base = at_work(client, training()).model
        loaded = PeftModel.from_pretrained(base, tmp_path / client.client_id).eval()
        adapter = loaded.peft_config["default"]
        if name is StrategyName.HETEROTUNE:  # acts on whole blocks, so it is no LoRA
            assert isinstance(adapter, FedAdapterConfig)
        else:
            assert isinstance(adapter, LoraConfig)
            assert adapter.r >= client.lora_rank
        with torch.no_grad():
            tuned = loaded(**make_inputs("llama")).logits
            with loaded.disable_adapter():
                assert not torch.equal(loaded(**make_inputs("llama")).logits, tuned)


@pytest.mark.parametrize(("name", "clients"), NOT_SERVED)
def test_strategy_refuses_what_it_cannot_serve(name: StrategyName, clients) -> None:
    refusals = build_strategy(PARAMS[name]).check(federation_of(clients()))
    assert refusals
    for refusal in refusals:
        assert f"Client {refusal.client_id!r}" in refusal.reason
        assert "instead of" in refusal.reason


@pytest.mark.parametrize("name", StrategyName)
def test_same_seed_gives_the_same_run(name: StrategyName) -> None:
    clients = same if "ranks" in REFUSED.get(name, ()) else ranks
    # Gauged factors are the same for every seed, so H2Tune runs with drawn ones here.
    params = H2TuneParams(gauge="none") if name is StrategyName.H2TUNE else PARAMS[name]
    runs = [
        simulate(params, clients(), num_rounds=2, training=training(), global_rank=8, seed=seed)
        for seed in (3, 3, 4)
    ]
    first, second, other = ({"": run.state.tensors, **run.private} for run in runs)
    assert first.keys() == second.keys()
    for owner, tensors in first.items():
        assert tensors.keys() == second[owner].keys()
        assert all(torch.equal(tensors[key], second[owner][key]) for key in tensors)
    learned = [
        (owner, key)
        for owner, tensors in first.items()
        for key in tensors
        if ("B/" in key or "factors/U/" in key) and "moments/" not in key
    ]
    for owner, key in learned:
        assert not torch.equal(first[owner][key], other[owner][key])
    assert learned


@pytest.mark.parametrize("name", StrategyName)
def test_learning_rates_fall_from_round_to_round(name: StrategyName) -> None:
    """So fast here that the second round of training changes nothing any more."""
    result = simulate(
        PARAMS[name],
        same(),
        num_rounds=2,
        training=training(round_decay=1e-9),
        global_rank=8,
        seed=3,
    )
    for client in ("a", "b"):
        first, second = (stage.metrics[client] for stage in result.rounds)
        before, after = (
            MetricName.VALIDATION_LOSS_BEFORE_TRAINING,
            MetricName.VALIDATION_LOSS_AFTER_TRAINING,
        )
        assert abs(first[after] - first[before]) > 1e-4
        assert second[after] == pytest.approx(second[before], abs=1e-6)
