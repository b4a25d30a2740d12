"""The gate of every strategy: each one against every way in which clients can differ."""

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel

from backend.contracts.metrics import MetricName
from backend.contracts.strategies import (
    H2TuneParams,
    HeteroTuneParams,
    LocalOnlyParams,
    Params,
    StrategyName,
    describe_strategies,
)
from tests.worker.federated.strategies.rounds import at_work, federation_of, training
from tests.worker.federated.tiny import make_client, make_inputs
from worker.federated.adapters import FedAdapterConfig
from worker.federated.simulation import SimulatedClient, simulate
from worker.federated.strategies.registry import STRATEGIES, build_strategy

PARAMS: dict[StrategyName, Params] = {
    StrategyName.LOCAL_ONLY: LocalOnlyParams(),
    StrategyName.H2TUNE: H2TuneParams(),
    StrategyName.HETEROTUNE: HeteroTuneParams(),
}


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


@pytest.mark.parametrize("name", StrategyName)
@pytest.mark.parametrize("clients", [same, ranks, widths, depths, families])
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
            assert metrics[MetricName.PRIVATE_CHANGE] > 0, number
            assert metrics[MetricName.BYTES_LORA] > 0
    for client in members:
        base = at_work(client, training()).model
        loaded = PeftModel.from_pretrained(base, tmp_path / client.client_id).eval()
        adapter = loaded.peft_config["default"]
        if name is StrategyName.HETEROTUNE:  # acts on whole blocks, so it is no LoRA
            assert isinstance(adapter, FedAdapterConfig)
        else:
            assert isinstance(adapter, LoraConfig)
            assert adapter.r == client.lora_rank
        with torch.no_grad():
            tuned = loaded(**make_inputs("llama")).logits
            with loaded.disable_adapter():
                assert not torch.equal(loaded(**make_inputs("llama")).logits, tuned)


@pytest.mark.parametrize("name", StrategyName)
def test_same_seed_gives_the_same_run(name: StrategyName) -> None:
    runs = [
        simulate(PARAMS[name], ranks(), num_rounds=2, training=training(), global_rank=8, seed=seed)
        for seed in (3, 3, 4)
    ]
    for client_id in ("a", "b"):
        first, second, other = (run.private[client_id] for run in runs)
        assert first.keys() == second.keys()
        assert all(torch.equal(first[key], second[key]) for key in first)
        assert not torch.equal(
            next(t for key, t in first.items() if key.startswith(("factors/B", "factors/D"))),
            next(t for key, t in other.items() if key.startswith(("factors/B", "factors/D"))),
        )
    assert all(
        torch.equal(runs[0].state.tensors[key], runs[1].state.tensors[key])
        for key in runs[0].state.tensors
    )
