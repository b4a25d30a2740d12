"""Scores of clients against NumPy, and what they say of hostile ones."""

import numpy as np
import pytest

from backend.contracts.metrics import MetricName
from backend.contracts.params.h2tune import H2TuneParams
from backend.contracts.params.lora import FloraParams
from backend.contracts.privacy import NO_PRIVACY, PrivacySettings, SecureAggregation
from backend.contracts.strategies import Params
from tests.worker.federated.robustness.updates import (
    FFA,
    H2TUNE,
    constant,
    federation,
    ffa_state,
    ffa_update,
    flat,
    normal,
    slots_state,
    slots_update,
)
from worker.federated.robustness.scores import score_clients
from worker.federated.types import ClientUpdate, Metrics

SCORES = {
    MetricName.COSINE_TO_MEAN,
    MetricName.CONTRIBUTION,
    MetricName.NORM_SHARE,
    MetricName.SENT_NORM,
    MetricName.OUTLIER_SCORE,
}


def cosine(one: np.ndarray, two: np.ndarray) -> float:
    return float(one @ two / np.linalg.norm(one) / np.linalg.norm(two))


def test_scores_are_what_their_definitions_say() -> None:
    members = federation(5)
    state = ffa_state(members)
    updates = [
        ffa_update(client, state, normal(number, scale=0.1 * (number + 1)))
        for number, client in enumerate(members.clients)
    ]
    found = score_clients(FFA, NO_PRIVACY, state, members, updates)
    changes = np.stack([flat(u.shared) - flat(state.tensors) for u in updates])
    weights = np.array([u.num_examples for u in updates], float)
    mean = weights @ changes
    loud = weights * np.linalg.norm(changes, axis=1)
    distances = np.linalg.norm(changes - np.median(changes, axis=0), axis=1)
    spread = 1.4826 * np.median(np.abs(distances - np.median(distances)))
    assert list(found) == ["a", "b", "c", "d", "e"]
    for number, scores in enumerate(found.values()):
        own = weights[number] * changes[number]
        assert scores == pytest.approx(
            {
                MetricName.COSINE_TO_MEAN: cosine(changes[number], mean),
                MetricName.CONTRIBUTION: cosine(changes[number], mean - own),
                MetricName.NORM_SHARE: loud[number] / loud.sum(),
                MetricName.SENT_NORM: np.linalg.norm(changes[number]),
                MetricName.OUTLIER_SCORE: (distances[number] - np.median(distances)) / spread,
            },
            rel=1e-4,
        )


def test_a_hostile_client_stands_out() -> None:
    members = federation(6)
    state = ffa_state(members)
    size = flat(state.tensors).size
    common = normal(1)((size,))
    noise = np.random.default_rng(3)

    def of(factor: float):
        parts = {}

        def draw(shape: tuple[int, ...]) -> np.ndarray:
            start = parts.setdefault("at", 0)
            parts["at"] = start + int(np.prod(shape))
            piece = common[start : parts["at"]].reshape(shape)
            return factor * piece + noise.normal(scale=0.3, size=shape)

        return draw

    factors = [1.0, 1.0, 1.0, 1.0, 1.0, -100.0]
    updates = [
        ffa_update(client, state, of(factor))
        for client, factor in zip(members.clients, factors, strict=True)
    ]
    scores = score_clients(FFA, NO_PRIVACY, state, members, updates)
    outliers = {name: values[MetricName.OUTLIER_SCORE] for name, values in scores.items()}
    assert outliers["f"] > 100
    assert max(score for name, score in outliers.items() if name != "f") < 3.5
    assert scores["f"][MetricName.NORM_SHARE] > 0.9
    assert scores["f"][MetricName.CONTRIBUTION] < -0.9
    honest = score_clients(FFA, NO_PRIVACY, state, members, updates[:5])
    assert all(values[MetricName.CONTRIBUTION] > 0.5 for values in honest.values())
    assert all(abs(values[MetricName.OUTLIER_SCORE]) < 3.5 for values in honest.values())


def test_a_sample_of_the_numbers_estimates_the_outlier_score_and_nothing_else_changes() -> None:
    members = federation(5)
    state = ffa_state(members)
    updates = [
        ffa_update(client, state, normal(number, scale=3.0 if number == 4 else 1.0))
        for number, client in enumerate(members.clients)
    ]
    exact = score_clients(FFA, NO_PRIVACY, state, members, updates)
    size = flat(state.tensors).size
    drawn = score_clients(FFA, NO_PRIVACY, state, members, updates, sample=5 * size // 3)
    for name, values in drawn.items():
        exact_score = exact[name].pop(MetricName.OUTLIER_SCORE)
        score = values.pop(MetricName.OUTLIER_SCORE)
        assert (score > 3.5) == (exact_score > 3.5) == (name == "e")
        assert values == exact[name]


def test_clients_that_hold_little_are_compared_over_what_they_hold() -> None:
    """Ranks 2 and 4 with the same numbers: nobody is unusual, all go one way."""
    members = federation(4, ranks=[2, 4, 2, 4])
    state = slots_state(members)
    updates = [slots_update(client, constant(0.5)) for client in members.clients]
    for scores in score_clients(H2TUNE, NO_PRIVACY, state, members, updates).values():
        assert scores[MetricName.CONTRIBUTION] == pytest.approx(1)
        assert scores[MetricName.COSINE_TO_MEAN] == pytest.approx(1)
        assert scores[MetricName.OUTLIER_SCORE] == 0


def test_one_who_changes_nothing_scores_zero_and_numbers_stay_finite() -> None:
    members = federation(3)
    state = ffa_state(members)
    idle = [ffa_update(client, state, constant(0.0)) for client in members.clients]
    for scores in score_clients(FFA, NO_PRIVACY, state, members, idle).values():
        assert scores == dict.fromkeys(SCORES, 0.0)
    loud = [*idle[:2], ffa_update(members.clients[2], state, constant(1.0))]
    scores = score_clients(FFA, NO_PRIVACY, state, members, loud)
    assert scores["c"][MetricName.OUTLIER_SCORE] == 1000
    assert scores["c"][MetricName.NORM_SHARE] == 1


@pytest.mark.parametrize(("count", "missing"), [(1, SCORES), (2, {MetricName.OUTLIER_SCORE})])
def test_few_clients_have_no_one_to_be_compared_with(count: int, missing: set[MetricName]) -> None:
    members = federation(count)
    state = ffa_state(members)
    updates = [ffa_update(client, state, normal(n)) for n, client in enumerate(members.clients)]
    found = score_clients(FFA, NO_PRIVACY, state, members, updates)
    assert {name for values in found.values() for name in values} == SCORES - missing


@pytest.mark.parametrize(
    ("params", "privacy"),
    [
        (FFA, PrivacySettings(secure_aggregation=SecureAggregation())),
        (FloraParams(), NO_PRIVACY),
        (H2TuneParams(aggregation="mean"), NO_PRIVACY),
    ],
)
def test_there_are_no_scores_where_updates_cannot_be_compared(
    params: Params, privacy: PrivacySettings
) -> None:
    def never() -> list[ClientUpdate]:
        raise AssertionError("no update may be read")

    members = federation(3)

    class Unread(list[ClientUpdate]):
        def __iter__(self):
            never()
            return super().__iter__()

    found: dict[str, Metrics] = score_clients(
        params, privacy, ffa_state(members), members, Unread()
    )
    assert found == {}
