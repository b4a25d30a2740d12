"""How a run asks for protection, and what is refused before anything runs."""

from typing import Any

import pytest
from sqlalchemy import Engine

from backend.contracts.secure_rules import SECURE_FIELD
from tests.factories import Caller, make_client, make_federation, make_run, problem, unchanged

FIXED = {"name": "h2tune", "train_alignment": False, "mask_warmup_rounds": 0}
NOISE = {"noise_multiplier": 2.0, "clip_norm": 0.5}


@pytest.fixture
def federation(operator: Caller) -> dict[str, Any]:
    client, _ = make_client(operator)
    return make_federation(operator, client)


def test_a_run_keeps_its_protection(operator: Caller, federation: dict[str, Any]) -> None:
    run = make_run(
        operator, federation, strategy=FIXED, privacy={"differential_privacy": NOISE}
    )  # fmt: skip
    assert run["privacy"] == {
        "differential_privacy": {
            "noise_multiplier": 2.0,
            "clip_norm": 0.5,
            "delta": 1e-5,
            "publish_measurements": False,
        },
        "secure_aggregation": None,
    }
    assert operator.get(f"/runs/{run['id']}").json() == run


def test_without_protection_nothing_is_set(operator: Caller, federation: dict[str, Any]) -> None:
    run = make_run(operator, federation)
    assert run["privacy"] == {"differential_privacy": None, "secure_aggregation": None}


@pytest.mark.parametrize(
    ("strategy", "privacy", "field", "words"),
    [
        ({"name": "local_only"}, {"differential_privacy": NOISE}, "differential", "shares nothing"),
        (
            FIXED | {"train_alignment": True},
            {"differential_privacy": NOISE},
            "differential",
            "set `train_alignment` to false",
        ),
        ({"name": "hetlora"}, {"differential_privacy": NOISE}, "differential", "linear aggreg"),
        ({"name": "hetlora"}, {"secure_aggregation": {}}, "secure_aggregation", "linear aggreg"),
        (FIXED, {"secure_aggregation": {}}, "secure_aggregation", "needs 3 clients in a round"),
        (FIXED, {"secure_aggregation": {}}, "secure_aggregation", "The platform trains for"),
    ],
)
def test_a_protection_that_cannot_be_given_is_refused(
    operator: Caller,
    federation: dict[str, Any],
    engine: Engine,
    strategy: dict[str, Any],
    privacy: dict[str, Any],
    field: str,
    words: str,
) -> None:
    with unchanged(engine):
        answer = operator.post(
            f"/federations/{federation['id']}/runs", {"strategy": strategy, "privacy": privacy}
        )
    body = problem(answer, 422, "protection_not_offered")
    assert words in body["detail"]
    assert body["errors"][0]["field"].startswith(f"privacy.{field}")
    assert words in " ".join(error["message"] for error in body["errors"])


REMOTE = {
    "execution": "remote",
    "dataset": None,
    "modules": {"q": {"in_features": 128, "out_features": 128}},
    "num_examples": 8,
}


def make_remote_federation(operator: Caller, *ranks: int) -> dict[str, Any]:
    clients = [
        make_client(operator, **REMOTE, name=f"remote-{n}", lora_rank=rank)[0]
        for n, rank in enumerate(ranks)
    ]
    return make_federation(operator, *clients)


def test_remote_clients_of_one_rank_may_add_up_securely(operator: Caller) -> None:
    federation = make_remote_federation(operator, 4, 4, 4)
    both = {"secure_aggregation": {"threshold": 3}, "differential_privacy": NOISE}
    run = make_run(operator, federation, strategy=FIXED, privacy=both)
    assert run["privacy"]["secure_aggregation"] == {"threshold": 3, "value_range": 16.0}


@pytest.mark.parametrize(
    ("ranks", "secure", "policy", "field", "words"),
    [
        ((4, 4), {}, {}, SECURE_FIELD, "needs 3 clients in a round, and 2 of 2"),
        ((4, 4, 4), {"threshold": 4}, {}, SECURE_FIELD, "needs 4 clients in a round"),
        ((4, 4, 4, 4), {}, {"clients_per_round": 2}, SECURE_FIELD, "2 of 4 take part"),
        ((4, 4, 8), {}, {}, SECURE_FIELD, "holds other entries than 'remote-0'"),
        (
            (4, 4, 4),
            {},
            {"buffer_size": 2},
            "round_policy.buffer_size",
            "leave buffer_size out",
        ),
        (
            (4, 4, 4),
            {},
            {"stragglers": "carry_over", "deadline_seconds": 60, "min_clients": 3},
            "round_policy.stragglers",
            "choose 'drop' or 'wait'",
        ),
    ],
)
def test_sums_that_would_hide_nobody_are_refused(
    operator: Caller,
    engine: Engine,
    ranks: tuple[int, ...],
    secure: dict[str, Any],
    policy: dict[str, Any],
    field: str,
    words: str,
) -> None:
    federation = make_remote_federation(operator, *ranks)
    body = {
        "strategy": FIXED,
        "privacy": {"secure_aggregation": secure},
        "round_policy": policy,
    }
    with unchanged(engine):
        answer = operator.post(f"/federations/{federation['id']}/runs", body)
    errors = problem(answer, 422, "protection_not_offered")["errors"]
    assert [error["field"] for error in errors] == [field]
    assert words in errors[0]["message"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("noise_multiplier", 0),
        ("noise_multiplier", -1),
        ("clip_norm", 0),
        ("delta", 0),
        ("delta", 1),
        ("delta", "small"),
        ("noise", 1),
    ],
)
def test_values_out_of_range_are_refused(
    operator: Caller, federation: dict[str, Any], name: str, value: object
) -> None:
    answer = operator.post(
        f"/federations/{federation['id']}/runs",
        {"strategy": FIXED, "privacy": {"differential_privacy": {name: value}}},
    )
    assert answer.status_code == 422
    assert name in answer.json()["errors"][0]["field"]
