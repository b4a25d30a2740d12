"""The control without sharing: among others, and yet as if there were none."""

from typing import Literal

import pytest
import torch

from backend.contracts.params.h2tune import H2TuneParams
from backend.contracts.privacy import PrivacySettings, SecureAggregation
from backend.contracts.robustness import Robustness
from backend.contracts.round_policy import RoundPolicy
from backend.contracts.training import TrainingConfig
from tests.worker.federated.tiny import make_client
from worker.federated.client_round import take
from worker.federated.errors import InvalidConfigError
from worker.federated.simulation import SimulatedClient, simulate

TRAINING = TrainingConfig(local_steps=3, batch_size=4, max_length=48)
COMMON = {"training": TRAINING, "global_rank": 4, "seed": 0}


def members() -> list[SimulatedClient]:
    return [make_client("a"), make_client("b", "gemma", num_layers=2, width=48, rank=2, seed=1)]


@pytest.mark.parametrize("aggregation", ["delta", "mean", "coverage", "relevance"])
@pytest.mark.parametrize("gauge", ["none", "probe"])
def test_everybody_ends_where_it_would_by_itself(
    aggregation: Literal["delta", "mean", "coverage", "relevance"],
    gauge: Literal["none", "probe"],
) -> None:
    params = H2TuneParams(aggregation=aggregation, gauge=gauge, control="alone")
    among = simulate(params, members(), num_rounds=3, **COMMON)
    same_rule = "delta" if aggregation == "relevance" else aggregation
    plain = H2TuneParams(aggregation=same_rule, gauge=gauge)
    for member in members():
        alone = simulate(plain, [member], num_rounds=3, **COMMON)
        slots = take("slots", alone.state.tensors)
        assert slots.keys() == set(member.spec().modules)
        for role, matrix in slots.items():
            own = among.state.tensors[f"own/{member.client_id}/{role}"]
            torch.testing.assert_close(own, matrix, atol=1e-6, rtol=1e-5)
        trained = among.private[member.client_id]
        for name, tensor in alone.private[member.client_id].items():
            if name.startswith("factors/"):
                torch.testing.assert_close(trained[name], tensor, atol=1e-6, rtol=1e-5)


def test_who_comes_late_starts_where_all_started() -> None:
    params = H2TuneParams(gauge="probe", control="alone")
    clients = [make_client(name, seed=seed) for seed, name in enumerate("abc")]
    policy = RoundPolicy(clients_per_round=1)
    result = simulate(params, clients, num_rounds=2, round_policy=policy, **COMMON)
    owners = {name.split("/")[1] for name in result.state.tensors if name.startswith("own/")}
    assert 1 <= len(owners) <= 2
    start = take("slots", result.state.tensors)
    assert all(not tensor.any() for tensor in start.values())  # with the probe gauge: zero


def test_there_is_no_sum_to_protect() -> None:
    params = H2TuneParams(control="alone")
    hidden = PrivacySettings(secure_aggregation=SecureAggregation())
    with pytest.raises(InvalidConfigError, match="no sum to hide them"):
        simulate(params, members(), num_rounds=1, privacy=hidden, **COMMON)
    with pytest.raises(InvalidConfigError, match="adds up nothing"):
        simulate(params, members(), num_rounds=1, robustness=Robustness(rule="median"), **COMMON)
