"""How a run asks for protection, and what is refused before anything runs."""

from typing import Any

import pytest
from sqlalchemy import Engine

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
        (FIXED, {"secure_aggregation": {}}, "secure_aggregation", "available in simulations only"),
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
