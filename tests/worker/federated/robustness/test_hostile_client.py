"""Whole simulations with one hostile client of five: the mean collapses, a robust rule holds."""

from dataclasses import replace

import pytest

from backend.contracts.metrics import MetricName
from backend.contracts.params.h2tune import H2TuneParams
from backend.contracts.params.lora import FedItParams
from backend.contracts.privacy import PrivacySettings, SecureAggregation
from backend.contracts.robustness import Robustness
from backend.contracts.strategies import Params
from tests.worker.federated.strategies.rounds import training
from tests.worker.federated.tiny import make_client, make_data
from worker.federated.errors import InvalidConfigError
from worker.federated.robustness.attacks import honest, random_noise, sign_flip
from worker.federated.simulation import SimulatedClient, SimulationResult, simulate

FEDIT = FedItParams()
H2TUNE = H2TuneParams(gauge="none")


def members(hostile: str = "e", tamper=honest) -> list[SimulatedClient]:
    """Five clients of one model and one task, each with rows of its own."""
    clients = [make_client(name, num_layers=1, width=16) for name in "abcde"]
    return [
        replace(
            client,
            data=make_data(seed=number),
            tamper=tamper if client.client_id == hostile else honest,
        )
        for number, client in enumerate(clients)
    ]


def run(params: Params, tamper, settings: Robustness, num_rounds: int = 2) -> SimulationResult:
    return simulate(
        params,
        members(tamper=tamper),
        num_rounds=num_rounds,
        training=training(local_steps=15, batch_size=8, learning_rate=2e-2),
        global_rank=4,
        seed=0,
        robustness=settings,
    )


def received_by_honest(result: SimulationResult) -> tuple[float, float]:
    """Mean validation loss and accuracy of the honest, with what the first round gave them."""
    last = result.rounds[1].metrics
    loss, accuracy = (
        sum(last[name][metric] for name in "abcd") / 4
        for metric in (
            MetricName.VALIDATION_LOSS_BEFORE_TRAINING,
            MetricName.ACCURACY_BEFORE_TRAINING,
        )
    )
    return loss, accuracy


@pytest.mark.parametrize(
    ("params", "settings"),
    [
        (FEDIT, Robustness(rule="multi_krum")),
        (H2TUNE, Robustness(rule="median")),
    ],
    ids=["fedit-multi_krum", "h2tune-median"],
)
def test_a_hostile_client_spoils_the_mean_and_not_the_robust_rule(
    params: Params, settings: Robustness
) -> None:
    attack = sign_flip(params, 100)
    spoilt = run(params, attack, Robustness())
    held = run(params, attack, settings)
    loss, accuracy = received_by_honest(held)
    assert accuracy >= 0.9
    assert loss < 0.55
    spoilt_loss, spoilt_accuracy = received_by_honest(spoilt)
    assert spoilt_accuracy < 0.75
    assert spoilt_loss > loss + 0.1
    for result in (spoilt, held):
        scores = {n: v[MetricName.OUTLIER_SCORE] for n, v in result.rounds[0].metrics.items()}
        assert scores["e"] > 100
        assert max(scores[name] for name in "abcd") < 3.5
    kept = {n: v[MetricName.KEPT_SHARE] for n, v in held.rounds[0].metrics.items()}
    assert kept["e"] < min(kept[name] for name in "abcd")
    assert all(MetricName.KEPT_SHARE not in v for v in spoilt.rounds[0].metrics.values())


def test_an_update_beyond_the_bound_is_left_out_and_named() -> None:
    result = run(FEDIT, random_noise(FEDIT, 20.0), Robustness(max_update_norm=50))
    for round_ in result.rounds:
        assert list(round_.refused) == ["e"]
        assert "max_update_norm of this run is 50" in round_.refused["e"]
        assert round_.report.num_clients == 4
        assert MetricName.OUTLIER_SCORE not in round_.metrics["e"]
        assert MetricName.OUTLIER_SCORE in round_.metrics["a"]
    assert received_by_honest(result)[1] >= 0.9


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"robustness": Robustness(rule="krum", num_hostile=2)}, "needs 7 updates"),
        (
            {
                "robustness": Robustness(rule="median"),
                "privacy": PrivacySettings(secure_aggregation=SecureAggregation()),
            },
            "the server sees no single update",
        ),
    ],
)
def test_what_could_not_hold_is_refused_before_it_begins(changes, reason: str) -> None:
    with pytest.raises(InvalidConfigError, match=reason):
        simulate(
            FEDIT, members(), num_rounds=1, training=training(), global_rank=4, seed=0, **changes
        )
