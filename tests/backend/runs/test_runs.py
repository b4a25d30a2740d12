"""Preparing, starting and cancelling runs."""

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import uuid4

import pytest
from redis import Redis
from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from backend import jobs
from backend.contracts.jobs import Queue
from backend.db.models import AuditEntry
from backend.settings import get_settings
from tests.factories import Caller, make_client, make_federation, make_run, problem, unchanged


@pytest.fixture
def federation(operator: Caller) -> dict[str, Any]:
    client, _ = make_client(operator)
    return make_federation(operator, client)


def queued(broker: Redis) -> list[tuple[str, dict[str, Any]]]:
    """Name and arguments of the jobs in the control queue, oldest first."""
    messages = [json.loads(raw) for raw in broker.lrange(Queue.CONTROL.value, 0, -1)]
    return [
        (message["headers"]["task"], json.loads(message["headers"]["kwargsrepr"].replace("'", '"')))
        for message in reversed(messages)
    ]


def test_a_run_keeps_what_was_asked(operator: Caller, federation: dict[str, Any]) -> None:
    run = make_run(
        operator,
        federation,
        strategy={"name": "h2tune", "sparsity": 0.5},
        num_rounds=3,
        seed=7,
        training={"local_steps": 5, "learning_rate": 0.001},
    )
    assert (run["status"], run["round_number"], run["num_rounds"], run["seed"]) == (
        "created",
        0,
        3,
        7,
    )
    assert run["strategy"]["sparsity"] == 0.5
    assert run["strategy"]["layout"] == "block"
    assert run["training"]["local_steps"] == 5
    assert operator.get(f"/runs/{run['id']}").json() == run
    listed = operator.get(f"/federations/{federation['id']}/runs").json()
    assert listed["items"] == [run]


@pytest.mark.parametrize(
    ("change", "field", "value", "words"),
    [
        (
            {"training": {"learning_rate": -0.1}},
            "training.learning_rate",
            -0.1,
            "training.learning_rate must be greater than 0, -0.1 was given.",
        ),
        (
            {"strategy": {"name": "fedsgd"}},
            "strategy.name",
            "fedsgd",
            "strategy.name must be one of 'local_only', ",
        ),
        ({"strategy": {}}, "strategy.name", None, "is missing"),
        ({"strategy": "h2tune"}, "strategy", "h2tune", "'h2tune' was given"),
        (
            {"strategy": {"name": "h2tune", "sparsity": 1}},
            "strategy.sparsity",
            1,
            "must be less than 1, 1 was given",
        ),
        (
            {"strategy": {"name": "local_only", "sparsity": 0.5}},
            "strategy.sparsity",
            None,
            "not a field of this request",
        ),
        ({"seed": 2**31}, "seed", 2**31, "must be less than 2147483648"),
        ({"seed": 10**400}, "seed", None, "seed"),
        ({"num_rounds": 0}, "num_rounds", 0, "greater than or equal to 1"),
        ({"num_rounds": float("inf")}, "num_rounds", "inf", "must be"),
        ({"training": {"learning_rate": float("nan")}}, "training.learning_rate", "nan", "nan"),
        ({"rounds": 5}, "rounds", None, "check its spelling"),
    ],
)
def test_wrong_values_are_named(  # the path, the value and what to do
    operator: Caller,
    federation: dict[str, Any],
    engine: Engine,
    change: dict[str, Any],
    field: str,
    value: object,
    words: str,
) -> None:
    body = json.dumps({"strategy": {"name": "h2tune"}} | change)
    with unchanged(engine):
        response = operator.request(
            "POST",
            f"/federations/{federation['id']}/runs",
            content=body,
            headers={"Content-Type": "application/json"},
        )
    answer = problem(response, 422, "invalid")
    assert [error["field"] for error in answer["errors"]] == [field]
    if value is not None:
        assert answer["errors"][0]["value"] == value
    assert words in answer["detail"]


def test_a_started_run_is_queued_with_its_job(
    operator: Caller, federation: dict[str, Any], broker: Redis, session: Session
) -> None:
    run = make_run(operator, federation)
    response = operator.post(f"/runs/{run['id']}/start")
    assert response.status_code == 202
    assert response.json()["status"] == "queued"
    assert queued(broker) == [("open_round", {"run_id": run["id"]})]
    events = operator.get(f"/runs/{run['id']}/events").json()["items"]
    assert [event["kind"] for event in events] == ["run_queued", "run_created"]
    actions = session.scalars(select(AuditEntry.action).order_by(AuditEntry.id)).all()
    assert actions[-2:] == ["run.create", "run.start"]


def test_a_run_starts_once(operator: Caller, federation: dict[str, Any], broker: Redis) -> None:
    run = make_run(operator, federation)

    def start(_number: int) -> Any:
        return operator.post(f"/runs/{run['id']}/start")

    with ThreadPoolExecutor(3) as pool:
        answers = list(pool.map(start, range(3)))
    assert sorted(answer.status_code for answer in answers) == [202, 409, 409]
    assert len(queued(broker)) == 1
    refused = next(answer for answer in answers if answer.status_code == 409)
    assert (
        "is queued; only a created run can be started"
        in (problem(refused, 409, "run_not_startable")["detail"])
    )


def test_a_member_without_data_stops_the_start(
    operator: Caller, engine: Engine, broker: Redis
) -> None:
    ready, _ = make_client(operator)
    waiting, _ = make_client(operator, dataset=None, name="south-clinic")
    run = make_run(operator, make_federation(operator, ready, waiting))
    with unchanged(engine):
        answer = problem(operator.post(f"/runs/{run['id']}/start"), 409, "dataset_missing")
    assert "No data set yet: south-clinic." in answer["detail"]
    assert queued(broker) == []


def test_a_broker_that_is_away_does_not_lose_the_start(
    operator: Caller, federation: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(operator, federation)
    monkeypatch.setenv("REDIS_URL", "redis://127.0.0.1:1/0")
    caches = (get_settings, jobs._producer)
    for cached in caches:
        cached.cache_clear()
    response = operator.post(f"/runs/{run['id']}/start")
    monkeypatch.undo()
    for cached in caches:
        cached.cache_clear()
    assert response.status_code == 202
    assert operator.get(f"/runs/{run['id']}").json()["status"] == "queued"


def test_a_run_is_cancelled_once(
    operator: Caller, federation: dict[str, Any], engine: Engine
) -> None:
    run = make_run(operator, federation)
    response = operator.post(f"/runs/{run['id']}/cancel")
    assert response.status_code == 202
    assert response.json()["status"] == "cancelled"
    assert response.json()["ended_at"] is not None
    with unchanged(engine):
        answer = problem(operator.post(f"/runs/{run['id']}/cancel"), 409, "run_ended")
        problem(operator.post(f"/runs/{run['id']}/start"), 409, "run_not_startable")
    assert "it is cancelled" in answer["detail"]


def test_viewers_and_clients_change_nothing(
    operator: Caller, viewer: Caller, federation: dict[str, Any], engine: Engine
) -> None:
    run = make_run(operator, federation)
    _, client = make_client(operator)
    body = {"strategy": {"name": "local_only"}}
    with unchanged(engine):
        for caller in (viewer, client):
            problem(caller.post(f"/federations/{federation['id']}/runs", body), 403, "forbidden")
            problem(caller.post(f"/runs/{run['id']}/start"), 403, "forbidden")
            problem(caller.post(f"/runs/{run['id']}/cancel"), 403, "forbidden")
    assert viewer.get(f"/runs/{run['id']}").status_code == 200


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", ""),
        ("POST", "/start"),
        ("POST", "/cancel"),
        ("GET", "/live"),
        ("GET", "/metrics"),
        ("GET", "/metrics?format=csv"),
        ("GET", "/events"),
        ("GET", "/adapters"),
        ("GET", f"/clients/{uuid4()}/adapter"),
    ],
)
def test_an_unknown_run(operator: Caller, method: str, path: str) -> None:
    problem(operator.request(method, f"/runs/{uuid4()}{path}"), 404, "not_found")


@pytest.fixture
def unequal(operator: Caller) -> dict[str, Any]:
    """Two clients of one architecture and rank, and one of another."""
    members = [
        make_client(operator, base_model={"source": "builtin", "id": model}, lora_rank=8)[0]
        for model in ("tiny_llama", "tiny_llama", "tiny_gemma")
    ]
    return {**make_federation(operator, *members), "names": [m["name"] for m in members]}


def test_a_strategy_that_cannot_serve_a_member_is_refused_before_a_run_exists(
    operator: Caller, unequal: dict[str, Any], engine: Engine
) -> None:
    path = f"/federations/{unequal['id']}/runs"
    with unchanged(engine):
        response = operator.post(path, {"strategy": {"name": "fedit"}})
    answer = problem(response, 422, "strategy_cannot_serve")
    [error] = answer["errors"]
    assert (error["field"], error["value"]) == ("strategy", "fedit")
    assert error["message"] == answer["detail"]
    first, _, odd = unequal["names"]
    assert answer["detail"].startswith(
        f"Client {odd!r} differs from {first!r} in number of layers (6 instead of 4), family "
        "(gemma instead of llama) and hidden size (96 instead of 128), and FedIT needs equal ones"
    )
    assert "set `group_by` to `architecture`" in answer["detail"]


def test_in_groups_it_is_served_and_says_so_everywhere(
    operator: Caller, unequal: dict[str, Any]
) -> None:
    run = make_run(operator, unequal, strategy={"name": "fedit", "group_by": "architecture"})
    title = "FedIT, in groups of equal architecture and rank"
    assert run["strategy_title"] == title
    assert operator.get(f"/runs/{run['id']}").json()["strategy_title"] == title
    [event] = operator.get(f"/runs/{run['id']}/events").json()["items"]
    assert f": {title}, 2 rounds, seed 0." in event["message"]
    [caution] = event["data"]["cautions"]
    assert caution.startswith(f"{unequal['names'][2]!r} has no other client of its shape")


def test_a_strategy_for_all_shapes_needs_no_groups(
    operator: Caller, unequal: dict[str, Any]
) -> None:
    assert make_run(operator, unequal, strategy={"name": "h2tune"})["strategy_title"] == "H2Tune"
