"""Rounds of some of the clients, and of updates that come late, for every strategy."""

from dataclasses import replace

import pytest
import torch

from backend.contracts.enums import StrategyName
from backend.contracts.params.base import StrategyParams
from backend.contracts.params.h2tune import H2TuneParams
from backend.contracts.params.lora import FedItParams
from backend.contracts.round_policy import RoundPolicy
from tests.worker.federated.strategies.rounds import training
from tests.worker.federated.tiny import make_client
from worker.federated.errors import InvalidConfigError
from worker.federated.simulation import SimulatedClient, SimulationResult, simulate
from worker.federated.staleness import SCALE, discounted
from worker.federated.strategies.registry import STRATEGIES
from worker.federated.types import ClientUpdate


def members(count: int = 3) -> list[SimulatedClient]:
    return [make_client(name, rank=4, seed=place) for place, name in enumerate("abcde"[:count])]


def run(
    params: StrategyParams, policy: RoundPolicy, num_rounds: int = 3, late: str = ""
) -> SimulationResult:
    return simulate(
        params,
        members(),
        num_rounds=num_rounds,
        training=training(),
        global_rank=8,
        seed=3,
        round_policy=policy,
        delays=lambda client_id, _: 2 if client_id in late else 0,
    )


def params_of(name: StrategyName) -> StrategyParams:
    factory = STRATEGIES[name]
    kind = factory.__init__.__annotations__["params"]
    return kind()  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", list(StrategyName), ids=lambda name: name.value)
def test_every_strategy_aggregates_some_of_its_clients(name: StrategyName) -> None:
    result = run(params_of(name), RoundPolicy(clients_per_round=2), num_rounds=3)
    took_part = [sorted(item.metrics) for item in result.rounds]
    assert {len(names) for names in took_part} == {2}
    assert len({tuple(names) for names in took_part}) > 1, "not the same two in every round"
    assert [item.report.num_clients for item in result.rounds] == [2, 2, 2]


@pytest.mark.parametrize("params", [FedItParams(), H2TuneParams()], ids=lambda p: p.name.value)
def test_a_buffer_of_everybody_changes_no_bit(params: StrategyParams) -> None:
    synchronous = run(params, RoundPolicy(), num_rounds=2)
    buffered = run(params, RoundPolicy(buffer_size=3, staleness_exponent=0), 2, late="b")
    assert synchronous.state.tensors.keys() == buffered.state.tensors.keys()
    for name, tensor in synchronous.state.tensors.items():
        assert torch.equal(tensor, buffered.state.tensors[name])


def test_a_late_update_counts_in_a_later_round_with_less_weight() -> None:
    plain = RoundPolicy(buffer_size=2, staleness_exponent=0)
    took_part = [sorted(item.metrics) for item in run(FedItParams(), plain, late="a").rounds]
    # "a" began in round 1 and comes two rounds later, behind "b" and "c" of round 2.
    assert took_part == [["b", "c"], ["b", "c"], ["a", "b"]]
    discounted_run = run(FedItParams(), replace_exponent(plain, 2.0), late="a")
    states = [run(FedItParams(), plain, late="a").state, discounted_run.state]
    assert not all(torch.equal(states[0].tensors[n], t) for n, t in states[1].tensors.items())


def replace_exponent(policy: RoundPolicy, exponent: float) -> RoundPolicy:
    return policy.model_copy(update={"staleness_exponent": exponent})


def test_weights_fall_with_age_by_the_power_law() -> None:
    updates = [ClientUpdate(name, 1, 10, {}, {}, {}) for name in "abc"]
    ages = {"a": 0, "b": 3, "c": 1}
    weights = [u.num_examples for u in discounted(updates, ages, 0.5)]
    assert weights == [10 * SCALE, 5 * SCALE, round(10 * SCALE / 2**0.5)]
    assert list(discounted(updates, ages, 0.0)) == updates
    assert list(discounted(updates, dict.fromkeys("abc", 0), 0.5)) == updates
    tiny = [replace(updates[1], num_examples=1)]
    assert next(discounted(tiny, {"b": 10**9}, 10.0)).num_examples == 1


def test_strategies_that_add_to_the_base_model_take_no_stale_updates() -> None:
    with pytest.raises(InvalidConfigError, match="adds every round to the base model"):
        run(params_of(StrategyName.FLORA), RoundPolicy(buffer_size=2))
    with pytest.raises(InvalidConfigError, match="never fills"):
        run(FedItParams(), RoundPolicy(buffer_size=4))
