"""How a run asks for robust aggregation over HTTP, and what is refused before anything runs."""

from typing import Any

import pytest
from sqlalchemy import Engine

from tests.factories import Caller, make_client, make_federation, make_run, problem, unchanged

MEDIAN = {"rule": "median"}
ALL = {
    "rule": "none",
    "trim_share": 0.2,
    "num_hostile": 1,
    "clip_norm": None,
    "max_update_norm": None,
}


@pytest.fixture
def federation(operator: Caller) -> dict[str, Any]:
    return make_federation(operator, *(make_client(operator)[0] for _ in range(3)))


def test_a_run_keeps_its_rule_and_so_does_its_copy(
    operator: Caller, federation: dict[str, Any]
) -> None:
    wanted = {"rule": "trimmed_mean", "trim_share": 0.4, "max_update_norm": 2.5}
    run = make_run(operator, federation, strategy={"name": "h2tune"}, robustness=wanted)
    assert run["robustness"] == ALL | wanted
    assert operator.get(f"/runs/{run['id']}").json() == run
    copy = operator.post(f"/runs/{run['id']}/clone", {}).json()
    assert copy["robustness"] == run["robustness"]


def test_without_a_wish_a_run_trusts_its_clients(
    operator: Caller, federation: dict[str, Any]
) -> None:
    assert make_run(operator, federation)["robustness"] == ALL


@pytest.mark.parametrize(
    ("changes", "field", "words"),
    [
        (
            {"strategy": {"name": "hetlora"}, "robustness": MEDIAN},
            "rule",
            "HetLoRA does not add up matrices of equal shape",
        ),
        ({"robustness": {"rule": "krum"}}, "rule", "needs 5 updates in every round"),
        (
            {"robustness": MEDIAN, "round_policy": {"min_clients": 2}},
            "rule",
            "may close with 2",
        ),
        (
            {
                "strategy": {"name": "local_only"},
                "robustness": {"max_update_norm": 1},
            },
            "max_update_norm",
            "Local only shares nothing",
        ),
    ],
)
def test_a_rule_that_could_not_hold_is_refused(
    operator: Caller,
    federation: dict[str, Any],
    engine: Engine,
    changes: dict[str, Any],
    field: str,
    words: str,
) -> None:
    body = {"strategy": {"name": "h2tune"}, **changes}
    with unchanged(engine):
        answer = operator.post(f"/federations/{federation['id']}/runs", body)
    found = problem(answer, 422, "robustness_not_offered")
    assert words in found["detail"]
    assert [error["field"] for error in found["errors"]] == [f"robustness.{field}"]


def test_arms_of_a_comparison_have_rules_of_their_own(
    operator: Caller, federation: dict[str, Any]
) -> None:
    arms = [
        {"strategy": {"name": "h2tune"}},
        {"strategy": {"name": "h2tune"}, "label": "median", "robustness": MEDIAN},
    ]
    body = {"name": "Hostile?", "arms": arms, "seeds": [0], "num_rounds": 1}
    made = operator.post(f"/federations/{federation['id']}/comparisons", body)
    assert made.status_code == 201, made.text
    assert [arm["robustness"]["rule"] for arm in made.json()["arms"]] == ["none", "median"]
    runs = operator.get(f"/federations/{federation['id']}/runs").json()["items"]
    assert {run["arm"]: run["robustness"]["rule"] for run in runs} == {
        "h2tune": "none",
        "h2tune_median": "median",
    }
    arms[1]["robustness"] = {"rule": "multi_krum"}
    refused = operator.post(f"/federations/{federation['id']}/comparisons", body)
    found = problem(refused, 422, "robustness_not_offered")
    assert found["errors"][0]["field"] == "arms.1.robustness.rule"
    assert found["detail"].startswith("Arm h2tune_median: ")
