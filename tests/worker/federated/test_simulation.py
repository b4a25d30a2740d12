from pathlib import Path

import pytest
import torch

from backend.contracts.metrics import MetricName
from backend.contracts.params.h2tune import H2TuneParams
from backend.contracts.params.lora import LocalOnlyParams
from tests.worker.federated.strategies.rounds import federation_of as federation
from tests.worker.federated.strategies.rounds import run_round, training
from tests.worker.federated.tiny import make_client
from worker.federated.errors import InvalidConfigError
from worker.federated.simulation import simulate
from worker.federated.strategies.h2tune import H2Tune


def test_a_simulation_is_the_rounds_of_its_strategy() -> None:
    clients = [make_client("b", rank=4, seed=1), make_client("a", rank=8, num_layers=3)]
    params, config = H2TuneParams(), training()
    result = simulate(params, clients, num_rounds=2, training=config, global_rank=8, seed=5)
    strategy, ordered = H2Tune(params), sorted(clients, key=lambda client: client.client_id)
    state, private = strategy.init_state(federation(ordered), 5), {}
    for number in (1, 2):
        updates = run_round(strategy, state, ordered, number, config, private)
        private = {update.client_id: update.private for update in updates}
        state, _ = strategy.aggregate(state, federation(ordered), iter(updates))
    for client_id, kept in private.items():
        assert all(torch.equal(result.private[client_id][name], kept[name]) for name in kept)
    for name, tensor in state.tensors.items():
        assert torch.equal(result.state.tensors[name], tensor)


def test_base_models_stay_untouched_and_adapters_are_delivered(tmp_path: Path) -> None:
    client = make_client()
    before = {name: p.clone() for name, p in client.model.state_dict().items()}
    result = simulate(
        LocalOnlyParams(),
        [client],
        num_rounds=1,
        training=training(),
        global_rank=8,
        seed=0,
        output=tmp_path,
    )
    after = client.model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert (tmp_path / "a" / "adapter_model.safetensors").exists()
    delivered = result.delivered["a"][MetricName.ACCURACY_DELIVERED]
    assert delivered == result.rounds[0].metrics["a"][MetricName.ACCURACY_AFTER_TRAINING]


def test_no_round_is_refused() -> None:
    with pytest.raises(InvalidConfigError, match="num_rounds is 0"):
        simulate(
            LocalOnlyParams(),
            [make_client()],
            num_rounds=0,
            training=training(),
            global_rank=8,
            seed=0,
        )
