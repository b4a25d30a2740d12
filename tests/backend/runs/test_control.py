"""Pausing, resuming and copying runs over the API."""

from redis import Redis
from sqlalchemy import select, update
from sqlalchemy.orm import Session

from backend.contracts.enums import RunStatus
from backend.db.models import AuditEntry, Run
from tests.factories import Caller, make_client, make_federation, make_run, problem

SETTINGS = {
    "num_rounds": 4,
    "round_policy": {"min_clients": 1},
    "stop_when": {"target": 0.9},
    "training": {"local_steps": 5},
}


def put(session: Session, run_id: str, status: RunStatus) -> None:
    session.execute(update(Run).where(Run.id == run_id).values(status=status, error="it broke"))
    session.commit()


def test_a_run_is_paused_resumed_and_copied(
    operator: Caller, viewer: Caller, session: Session, broker: Redis
) -> None:
    client, _ = make_client(operator)
    run = make_run(operator, make_federation(operator, client), **SETTINGS)
    path = f"/runs/{run['id']}"
    problem(operator.post(f"{path}/pause"), 409, "run_not_pausable")
    problem(operator.post(f"{path}/resume"), 409, "run_not_resumable")
    put(session, run["id"], RunStatus.RUNNING)
    assert viewer.post(f"{path}/pause").status_code == 403
    assert operator.post(f"{path}/pause").json()["status"] == "paused"
    assert operator.post(f"{path}/resume").json()["status"] == "running"
    assert broker.llen("control") == 1
    put(session, run["id"], RunStatus.FAILED)
    resumed = operator.post(f"{path}/resume").json()
    assert (resumed["status"], resumed["error"]) == ("running", None)
    copy = operator.post(f"{path}/clone", {"seed": 7})
    assert copy.status_code == 201
    answer = copy.json()
    assert (answer["status"], answer["seed"]) == ("created", 7)
    same = ("strategy", "num_rounds", "training", "privacy", "round_policy", "stop_when")
    assert {name: answer[name] for name in same} == {name: run[name] for name in same}
    actions = session.scalars(select(AuditEntry.action).order_by(AuditEntry.id)).all()
    assert [a for a in actions if a.startswith("run.")][1:] == [
        "run.pause",
        "run.resume",
        "run.resume",
        "run.create",
        "run.clone",
    ]


def test_rounds_that_could_never_close_are_refused_before_the_run_exists(operator: Caller) -> None:
    client, _ = make_client(operator)
    federation = make_federation(operator, client)
    body = {"strategy": {"name": "local_only"}, "round_policy": {"min_clients": 2}}
    answer = problem(
        operator.post(f"/federations/{federation['id']}/runs", body), 422, "round_policy_impossible"
    )
    assert [error["field"] for error in answer["errors"]] == ["round_policy.min_clients"]
    assert "only 1 of 1 clients take part" in answer["detail"]
