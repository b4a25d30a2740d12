"""Preparing, starting and cancelling comparisons, and whose turn it is."""

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import uuid4

import pytest
from redis import Redis
from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from backend.contracts import compatibility, strategies
from backend.contracts.enums import RunStatus
from backend.contracts.jobs import Queue
from backend.db.models import AuditEntry, Run
from backend.db.session import SessionFactory
from backend.lifecycle import change_run
from backend.settings import Settings
from backend.sweep import sweep_once
from tests.backend.comparisons.comparing import (
    ARMS,
    admitted,
    complete,
    fail,
    make_comparison,
    runs_of,
)
from tests.factories import (
    NDJSON,
    ROWS,
    Caller,
    make_client,
    make_federation,
    make_run,
    problem,
    unchanged,
)


@pytest.fixture
def federation(operator: Caller) -> dict[str, Any]:
    client, _ = make_client(operator)
    return make_federation(operator, client)


@pytest.fixture
def started(
    operator: Caller, federation: dict[str, Any], broker: Redis, engine: Engine
) -> dict[str, Any]:
    comparison = make_comparison(operator, federation)
    response = operator.post(f"/comparisons/{comparison['id']}/start")
    assert response.status_code == 202, response.text
    return dict(response.json())


def queued_runs(broker: Redis) -> list[str]:
    """Runs for which an opening job waits, oldest first."""
    messages = [json.loads(raw) for raw in broker.lrange(Queue.CONTROL.value, 0, -1)]
    return [
        json.loads(message["headers"]["kwargsrepr"].replace("'", '"'))["run_id"]
        for message in reversed(messages)
        if message["headers"]["task"] == "open_round"
    ]


def sweep(session_factory: SessionFactory, **changes: Any) -> None:
    sweep_once(session_factory, Settings(**changes))


def end(session: Session, run: Run, status: RunStatus = RunStatus.COMPLETED) -> None:
    change_run(session, run.id, RunStatus.RUNNING)
    change_run(session, run.id, status)
    session.commit()


# --- preparing ---------------------------------------------------------------------------


def test_a_comparison_makes_a_run_for_each_arm_and_seed(
    operator: Caller, federation: dict[str, Any]
) -> None:
    comparison = make_comparison(
        operator,
        federation,
        arms=[{"strategy": {"name": "h2tune", "sparsity": 0.5}, "label": "sparse"}],
        seeds=[7, 3],
        num_rounds=4,
        training={"local_steps": 5},
    )
    assert comparison["status"] == "created"
    assert comparison["num_runs"] == {"created": 2}
    assert [arm["name"] for arm in comparison["arms"]] == ["h2tune_sparse"]
    runs = operator.get(f"/comparisons/{comparison['id']}/runs").json()["items"]
    assert sorted(run["seed"] for run in runs) == [3, 7]
    for run in runs:
        assert run["comparison_id"] == comparison["id"]
        assert run["arm"] == "h2tune_sparse"
        assert run["strategy"]["sparsity"] == 0.5
        assert (run["num_rounds"], run["training"]["local_steps"]) == (4, 5)
        [event] = operator.get(f"/runs/{run['id']}/events").json()["items"]
        assert "arm h2tune_sparse" in event["message"]
    assert operator.get(f"/comparisons/{comparison['id']}").json() == comparison
    listed = operator.get(f"/federations/{federation['id']}/comparisons").json()
    assert listed["items"] == [comparison]


def test_controls_are_arms_of_their_own(operator: Caller, federation: dict[str, Any]) -> None:
    arms = [
        {"strategy": {"name": "h2tune"}},
        {"strategy": {"name": "h2tune", "gauge": "probe"}, "label": "probe"},
    ]
    comparison = make_comparison(operator, federation, arms=arms, controls=True, seeds=[0])
    strategies = {arm["name"]: arm["strategy"] for arm in comparison["arms"]}
    assert list(strategies) == [
        "h2tune",
        "h2tune_probe",
        "h2tune_permuted",
        "h2tune_noise",
        "h2tune_alone",
        "h2tune_probe_permuted",
        "h2tune_probe_noise",
        "h2tune_probe_alone",
        "local_only",
        "local_only_stopped_early",
    ]
    assert strategies["h2tune_probe_noise"]["gauge"] == "probe"
    assert strategies["h2tune_probe_noise"]["control"] == "noise"
    assert strategies["h2tune_probe_alone"]["control"] == "alone"
    assert strategies["h2tune_permuted"]["control"] == "permuted"
    assert strategies["local_only"]["guard"] == "off"
    assert strategies["local_only_stopped_early"]["guard"] == "validation"


def test_controls_that_were_asked_for_are_not_doubled(
    operator: Caller, federation: dict[str, Any]
) -> None:
    controls = ["h2tune_permuted", "h2tune_noise", "h2tune_alone"]
    comparison = make_comparison(operator, federation, controls=True, seeds=[0])
    names = [arm["name"] for arm in comparison["arms"]]
    early = "local_only_stopped_early"
    assert names == ["local_only", "h2tune", controls[0], early, *controls[1:]]
    guarded = {"strategy": {"name": "local_only", "guard": "validation"}, "label": "at_its_best"}
    for arms, local in (
        ([guarded, ARMS[0], ARMS[1]], ["local_only_at_its_best", "local_only"]),
        ([guarded, ARMS[1]], ["local_only_at_its_best"]),
    ):
        comparison = make_comparison(operator, federation, arms=arms, controls=True, seeds=[0])
        names = [arm["name"] for arm in comparison["arms"]]
        assert names == [*local, "h2tune", *controls]


@pytest.mark.parametrize(
    ("change", "field", "words"),
    [
        ({"seeds": []}, "seeds", "at least 1"),
        ({"seeds": [0, 1, 0]}, "body", "seed 0 is named twice"),
        ({"seeds": [-1]}, "seeds.0", "greater than or equal to 0"),
        ({"arms": []}, "arms", "at least 1"),
        ({"arms": [ARMS[1], ARMS[1]]}, "body", "two arms are named h2tune"),
        ({"arms": [ARMS[1] | {"label": "A b"}]}, "arms.0.label", "'A b' was given"),
        ({"arms": [{"strategy": {"name": "fedsgd"}}]}, "arms.0.strategy.name", "fedsgd"),
        (
            {"arms": [{**ARMS[1], "label": f"l{n}"} for n in range(50)], "seeds": list(range(11))},
            "body",
            "more than 500 runs",
        ),
        (
            {"arms": [{**ARMS[0], "label": "l" * 27}], "controls": True},
            "body",
            "has 27 characters, and its control is named '..._stopped_early': shorten it to 26",
        ),
        ({"name": ""}, "name", "at least 1 character"),
        ({"control": True}, "control", "check its spelling"),
    ],
)
def test_wrong_values_are_named(
    operator: Caller,
    federation: dict[str, Any],
    engine: Engine,
    change: dict[str, Any],
    field: str,
    words: str,
) -> None:
    body = {"name": "x", "arms": ARMS, "seeds": [0], **change}
    with unchanged(engine):
        response = operator.post(f"/federations/{federation['id']}/comparisons", body)
    answer = problem(response, 422, "invalid")
    assert [error["field"] for error in answer["errors"]] == [field]
    assert words in answer["detail"]


def test_an_arm_that_cannot_serve_a_client_is_refused_with_its_name(
    operator: Caller, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    small, _ = make_client(operator, name="small-clinic", lora_rank=4)
    large, _ = make_client(operator, name="large-clinic", lora_rank=8)
    federation = make_federation(operator, small, large)
    refusing = needs_equal_ranks(monkeypatch)
    body = {"name": "x", "arms": ARMS, "seeds": [0]}
    with unchanged(engine):
        response = operator.post(f"/federations/{federation['id']}/comparisons", body)
    answer = problem(response, 422, "strategy_cannot_serve")
    assert {(error["field"], error["value"]) for error in answer["errors"]} == {
        (f"arms.{place}.strategy", name) for place, name in refusing
    }
    for error in answer["errors"]:
        assert error["message"].startswith(f"Arm {error['value']}: ")
        assert "large-clinic" in error["message"]
        assert "LoRA rank" in error["message"]


def needs_equal_ranks(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, str]]:
    """Makes h2tune a strategy that needs equal ranks; gives the arms that then do not fit."""

    def info(params: strategies.StrategyParams) -> strategies.StrategyInfo:
        found = strategies.info_of(params)
        if found.name is not strategies.StrategyName.H2TUNE:
            return found
        narrow = found.capabilities.model_copy(update={"rank": False})
        return found.model_copy(update={"capabilities": narrow})

    monkeypatch.setattr(compatibility, "info_of", info)
    return [(1, "h2tune"), (2, "h2tune_permuted")]


def test_an_arm_may_be_protected_and_a_strategy_that_shares_nothing_may_not(
    operator: Caller, federation: dict[str, Any], session: Session, engine: Engine
) -> None:
    noise = {"differential_privacy": {"noise_multiplier": 2.0, "publish_measurements": True}}
    arms = [
        {"strategy": {"name": "fedit"}},
        {"strategy": {"name": "fedit"}, "label": "noised", "privacy": noise},
    ]
    comparison = make_comparison(operator, federation, arms=arms, seeds=[0])
    runs = runs_of(session, comparison)
    assert runs["fedit_noised", 0].privacy["differential_privacy"]["noise_multiplier"] == 2.0
    assert runs["fedit", 0].privacy["differential_privacy"] is None
    body = {"name": "x", "arms": [ARMS[0] | {"privacy": noise}], "seeds": [0]}
    with unchanged(engine):
        response = operator.post(f"/federations/{federation['id']}/comparisons", body)
    [error] = problem(response, 422, "protection_not_offered")["errors"]
    assert error["field"] == "arms.0.privacy.differential_privacy"
    assert error["message"].startswith("Arm local_only: ")


def test_an_arm_may_train_at_its_own_learning_rate(
    operator: Caller, federation: dict[str, Any], session: Session, engine: Engine
) -> None:
    slow = {"label": "lr_1e_4", "training": {"learning_rate": 1e-4}}
    comparison = make_comparison(
        operator,
        federation,
        arms=[ARMS[0], ARMS[0] | slow, ARMS[1] | slow],
        controls=True,
        seeds=[0],
        training={"learning_rate": 0.01, "local_steps": 5},
    )
    trainings = {arm: run.training for (arm, _), run in runs_of(session, comparison).items()}
    assert {arm: training["learning_rate"] for arm, training in trainings.items()} == {
        "local_only": 0.01,
        "local_only_lr_1e_4": 1e-4,
        "h2tune_lr_1e_4": 1e-4,
        "local_only_stopped_early": 0.01,
        "local_only_lr_1e_4_stopped_early": 1e-4,
        "h2tune_lr_1e_4_permuted": 1e-4,
        "h2tune_lr_1e_4_noise": 1e-4,
        "h2tune_lr_1e_4_alone": 1e-4,
    }
    assert {training["local_steps"] for training in trainings.values()} == {5}
    for wrong, field in (
        ({"learning_rate": 0}, "learning_rate"),
        ({"local_steps": 3}, "local_steps"),
    ):
        body = {"name": "x", "arms": [ARMS[0] | {"training": wrong}], "seeds": [0]}
        with unchanged(engine):
            response = operator.post(f"/federations/{federation['id']}/comparisons", body)
        [error] = problem(response, 422, "invalid")["errors"]
        assert error["field"] == f"arms.0.training.{field}"


# --- starting and turns ------------------------------------------------------------------


def test_all_runs_are_queued_and_a_few_begin(
    operator: Caller, started: dict[str, Any], broker: Redis, session: Session
) -> None:
    assert started["status"] == "queued"
    assert started["num_runs"] == {"queued": 6}
    runs = runs_of(session, started)
    first = [("local_only", 0), ("h2tune", 0)]  # the first seed comes first, arms in their order
    assert admitted(session, started) == set(first)
    assert queued_runs(broker) == [str(runs[place].id) for place in first]
    kinds = [
        event["kind"] for event in operator.get(f"/runs/{runs[first[0]].id}/events").json()["items"]
    ]
    assert kinds == ["run_admitted", "run_queued", "run_created"]
    actions = session.scalars(select(AuditEntry.action).order_by(AuditEntry.id)).all()
    assert actions[-2:] == ["comparison.create", "comparison.start"]


@pytest.mark.parametrize("status", [RunStatus.COMPLETED, RunStatus.FAILED, RunStatus.CANCELLED])
def test_the_sweep_lets_the_next_begin_however_one_ended(
    started: dict[str, Any],
    broker: Redis,
    session: Session,
    session_factory: SessionFactory,
    status: RunStatus,
) -> None:
    sweep(session_factory)
    assert len(admitted(session, started)) == 2, "nothing has ended: nothing is free"
    end(session, runs_of(session, started)["h2tune", 0], status)
    sweep(session_factory)
    expected = {("local_only", 0), ("h2tune", 0), ("h2tune_permuted", 0)}
    assert admitted(session, started) == expected
    sweep(session_factory)
    assert admitted(session, started) == expected
    assert len(queued_runs(broker)) == 3


def test_every_run_has_its_turn(
    operator: Caller, started: dict[str, Any], session: Session, session_factory: SessionFactory
) -> None:
    for _ in range(3):
        going_on = [
            run
            for run in runs_of(session, started).values()
            if run.enqueued_at is not None and not run.status.is_terminal
        ]
        assert len(going_on) == 2
        for run in going_on:
            end(session, run)
        sweep(session_factory)
    comparison = operator.get(f"/comparisons/{started['id']}").json()
    assert (comparison["status"], comparison["num_runs"]) == ("completed", {"completed": 6})
    assert comparison["ended_at"] is not None


def test_sweeps_at_the_same_time_give_each_turn_once(
    started: dict[str, Any], broker: Redis, session: Session, session_factory: SessionFactory
) -> None:
    for place in (("local_only", 0), ("h2tune", 0)):
        end(session, runs_of(session, started)[place])
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: sweep(session_factory), range(4)))
    assert len(admitted(session, started)) == 4
    jobs = queued_runs(broker)
    assert len(jobs) == len(set(jobs)) == 4


def test_a_lost_job_is_repeated_but_waiting_runs_are_left_alone(
    started: dict[str, Any], broker: Redis, session: Session, session_factory: SessionFactory
) -> None:
    broker.flushdb()
    sweep(session_factory, lease_seconds=1e-6)  # so impatient that every job counts as lost
    runs = runs_of(session, started)
    assert set(queued_runs(broker)) == {
        str(runs["local_only", 0].id),
        str(runs["h2tune", 0].id),
    }


def test_another_comparison_does_not_wait_for_the_first(
    operator: Caller, federation: dict[str, Any], started: dict[str, Any], session: Session
) -> None:
    other = make_comparison(operator, federation, name="another")
    operator.post(f"/comparisons/{other['id']}/start")
    assert len(admitted(session, other)) == 2


def test_a_comparison_starts_once(
    operator: Caller, federation: dict[str, Any], broker: Redis
) -> None:
    comparison = make_comparison(operator, federation)

    def start(_number: int) -> Any:
        return operator.post(f"/comparisons/{comparison['id']}/start")

    with ThreadPoolExecutor(3) as pool:
        answers = list(pool.map(start, range(3)))
    assert sorted(answer.status_code for answer in answers) == [202, 409, 409]
    assert len(queued_runs(broker)) == 2
    refused = next(answer for answer in answers if answer.status_code == 409)
    problem(refused, 409, "comparison_not_startable")


def test_a_member_without_data_stops_the_start(operator: Caller, engine: Engine) -> None:
    waiting, _ = make_client(operator, dataset=None, name="south-clinic")
    comparison = make_comparison(operator, make_federation(operator, waiting))
    with unchanged(engine):
        response = operator.post(f"/comparisons/{comparison['id']}/start")
    assert "south-clinic" in problem(response, 409, "dataset_missing")["detail"]


def test_data_stay_as_they_are_until_the_last_run_has_ended(
    operator: Caller, federation: dict[str, Any], started: dict[str, Any]
) -> None:
    client_id = federation["clients"][0]["id"]
    response = operator.put(f"/clients/{client_id}/dataset", content=ROWS, headers=NDJSON)
    problem(response, 409, "dataset_in_use")


def test_its_runs_do_not_start_one_by_one(
    operator: Caller, federation: dict[str, Any], session: Session, engine: Engine
) -> None:
    comparison = make_comparison(operator, federation)
    run = runs_of(session, comparison)["h2tune", 0]
    with unchanged(engine):
        answer = problem(operator.post(f"/runs/{run.id}/start"), 409, "run_of_comparison")
    assert f"comparison {comparison['id']}" in answer["detail"]


# --- ending ------------------------------------------------------------------------------


def test_cancelling_ends_what_has_not_ended(
    operator: Caller, started: dict[str, Any], session: Session, engine: Engine
) -> None:
    end(session, runs_of(session, started)["local_only", 0])
    response = operator.post(f"/comparisons/{started['id']}/cancel")
    assert response.status_code == 202
    assert response.json()["status"] == "cancelled"
    assert response.json()["num_runs"] == {"completed": 1, "cancelled": 5}
    with unchanged(engine):
        problem(operator.post(f"/comparisons/{started['id']}/cancel"), 409, "comparison_ended")
    events = operator.get(f"/comparisons/{started['id']}/events").json()["items"]
    assert sum(event["kind"] == "run_cancelled" for event in events) == 5


def test_a_cancelled_comparison_gives_no_more_turns(
    operator: Caller, started: dict[str, Any], session: Session, session_factory: SessionFactory
) -> None:
    operator.post(f"/comparisons/{started['id']}/cancel")
    sweep(session_factory)
    assert len(admitted(session, started)) == 2


def test_a_failed_run_fails_neither_the_others_nor_the_comparison(
    operator: Caller, federation: dict[str, Any], session: Session
) -> None:
    comparison = make_comparison(operator, federation, arms=ARMS[:2], seeds=[0])
    runs = runs_of(session, comparison)
    fail(session, runs["h2tune", 0], "north-clinic failed: no memory left")
    complete(session, runs["local_only", 0], {})
    assert operator.get(f"/comparisons/{comparison['id']}").json()["status"] == "completed"


# --- who may -----------------------------------------------------------------------------


def test_viewers_look_and_clients_do_not(
    operator: Caller, viewer: Caller, anonymous: Caller, federation: dict[str, Any], engine: Engine
) -> None:
    comparison = make_comparison(operator, federation)
    path = f"/comparisons/{comparison['id']}"
    _, client = make_client(operator)
    body = {"name": "x", "arms": ARMS, "seeds": [0]}
    reads = ["", "/runs", "/events", "/results", "/results.csv", "/results.md"]
    with unchanged(engine):
        for caller in (viewer, client):
            problem(
                caller.post(f"/federations/{federation['id']}/comparisons", body), 403, "forbidden"
            )
            problem(caller.post(f"{path}/start"), 403, "forbidden")
            problem(caller.post(f"{path}/cancel"), 403, "forbidden")
        for read in reads:
            assert viewer.get(path + read).status_code == 200
            problem(client.get(path + read), 403, "forbidden")
            problem(anonymous.get(path + read), 401, "unauthenticated")


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", ""),
        ("POST", "/start"),
        ("POST", "/cancel"),
        ("GET", "/runs"),
        ("GET", "/events"),
        ("GET", "/results"),
        ("GET", "/results.csv"),
        ("GET", "/results.md"),
    ],
)
def test_an_unknown_comparison(operator: Caller, method: str, path: str) -> None:
    problem(operator.request(method, f"/comparisons/{uuid4()}{path}"), 404, "not_found")


def test_an_unknown_federation(operator: Caller) -> None:
    body = {"name": "x", "arms": ARMS, "seeds": [0]}
    path = f"/federations/{uuid4()}/comparisons"
    problem(operator.post(path, body), 404, "not_found")
    problem(operator.get(path), 404, "not_found")


def test_lists_are_cut_into_pages(operator: Caller, federation: dict[str, Any]) -> None:
    made = [make_comparison(operator, federation, name=f"c{n}", seeds=[0]) for n in range(3)]
    path = f"/federations/{federation['id']}/comparisons"
    first = operator.get(path, params={"limit": 2}).json()
    rest = operator.get(path, params={"limit": 2, "cursor": first["next_cursor"]}).json()
    assert [c["name"] for c in first["items"] + rest["items"]] == ["c2", "c1", "c0"]
    assert rest["next_cursor"] is None
    runs = f"/comparisons/{made[0]['id']}/runs"
    assert operator.get(runs, params={"limit": 2}).json()["next_cursor"] is not None


def test_runs_outside_of_comparisons_are_as_before(
    operator: Caller, federation: dict[str, Any]
) -> None:
    run = make_run(operator, federation)
    assert (run["comparison_id"], run["arm"]) == (None, None)
