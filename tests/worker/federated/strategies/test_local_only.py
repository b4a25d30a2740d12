import pytest
import torch

from backend.contracts.metrics import MetricName
from backend.contracts.params.h2tune import H2TuneParams
from backend.contracts.params.lora import LocalOnlyParams
from tests.worker.federated.strategies.rounds import (
    at_work,
    federation_of,
    plans_of,
    run_round,
    training,
)
from tests.worker.federated.tiny import make_client
from worker.federated.client_round import take
from worker.federated.errors import InvalidUpdateError
from worker.federated.strategies.h2tune import H2Tune
from worker.federated.strategies.local_only import LocalOnly
from worker.federated.types import ClientUpdate


@pytest.fixture
def strategy() -> LocalOnly:
    return LocalOnly(LocalOnlyParams())


def test_nothing_leaves_the_client(strategy: LocalOnly) -> None:
    client = make_client()
    state = strategy.init_state(federation_of([client]), 1)
    (update,) = run_round(strategy, state, [client], 1, training())
    assert update.shared == {}
    assert update.metrics[MetricName.BYTES_UP] == update.metrics[MetricName.BYTES_DOWN] == 0
    after, report = strategy.aggregate(state, federation_of([client]), iter([update]))
    assert after == state
    assert report.num_clients == 1


def test_measures_before_training_only_once(strategy: LocalOnly) -> None:
    client = make_client()
    state = strategy.init_state(federation_of([client]), 1)
    (first,) = run_round(strategy, state, [client], 1, training())
    plan = plans_of(strategy, state, [client], 2)["a"]
    seen: list[str] = []
    local = at_work(client, training(), first.private)
    local = type(local)(
        **{
            **{name: getattr(local, name) for name in local.__slots__},
            "on_progress": lambda progress: seen.append(progress.stage),
        }
    )
    second = strategy.train_client(plan, local)
    assert seen.count("evaluating") == 1
    for before, after in (
        (MetricName.ACCURACY_BEFORE_TRAINING, MetricName.ACCURACY_AFTER_TRAINING),
        (MetricName.VALIDATION_LOSS_BEFORE_TRAINING, MetricName.VALIDATION_LOSS_AFTER_TRAINING),
    ):
        assert second.metrics[before] == first.metrics[after]


def test_repeated_round_gives_the_same_bits(strategy: LocalOnly) -> None:
    client = make_client()
    state = strategy.init_state(federation_of([client]), 1)
    (first,) = run_round(strategy, state, [client], 1, training())
    private = {"a": first.private}
    (one,) = run_round(strategy, state, [client], 2, training(), private)
    (two,) = run_round(strategy, state, [client], 2, training(), private)
    assert all(torch.equal(one.private[key], two.private[key]) for key in one.private)


def test_factors_start_as_in_h2tune(strategy: LocalOnly) -> None:
    client, idle = make_client(), training(local_steps=0)
    federation = federation_of([client])
    (plain,) = run_round(strategy, strategy.init_state(federation, 1), [client], 1, idle)
    h2tune = H2Tune(H2TuneParams(gauge="none"))
    (braided,) = run_round(h2tune, h2tune.init_state(federation, 1), [client], 1, idle)
    one, two = take("factors", plain.private), take("factors", braided.private)
    assert one.keys() == two.keys()
    assert all(torch.equal(one[key], two[key]) for key in one)


def test_an_update_with_tensors_is_refused(strategy: LocalOnly) -> None:
    client = make_client()
    federation = federation_of([client])
    state = strategy.init_state(federation, 1)
    update = ClientUpdate("a", 1, 4, {"A": torch.zeros(1)}, {}, {})
    with pytest.raises(InvalidUpdateError, match="unknown are 'A'"):
        strategy.aggregate(state, federation, iter([update]))
    with pytest.raises(InvalidUpdateError, match="at least one"):
        strategy.aggregate(state, federation, iter([]))
