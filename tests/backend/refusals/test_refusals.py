"""Clients that stay out of a run: what becomes of the run, and who may say so."""

from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from backend import leases
from backend.auth.service import issue_credential
from backend.contracts.enums import EventKind, Execution, RunStatus, UpdateStatus
from backend.contracts.round_policy import RoundPolicy
from backend.db.models import Attempt, AuditEntry, Client, ClientUpdate, Event, Round, Run
from backend.db.session import SessionFactory
from backend.participation import refusals_of
from tests.backend.rows import OpenRun, add_clients, add_open_run, add_run
from tests.backend.test_leases import take
from tests.factories import Caller, problem
from worker.federated.errors import FederatedError
from worker.opening import plan_opening

pytestmark = pytest.mark.usefixtures("broker")


@pytest.fixture
def rows(session: Session) -> OpenRun:
    """Three remote clients in round 1, of which two are enough."""
    rows = add_open_run(session, 3, Execution.REMOTE)
    set_policy(session, rows, RoundPolicy(min_clients=2), quorum=2)
    return rows


def set_policy(session: Session, rows: OpenRun, policy: RoundPolicy, quorum: int) -> None:
    session.get_one(Run, rows.run_id).round_policy = policy.model_dump(mode="json")
    session.get_one(Round, rows.round_id).quorum = quorum
    session.commit()


def refuse(caller: Caller, rows: OpenRun, index: int, reason: str = "Not yet agreed.") -> Any:
    body = {"run_id": str(rows.run_id), "reason": reason}
    return caller.post(f"/clients/{rows.client_ids[index]}/refusals", body)


def withdraw(caller: Caller, refusal: dict[str, Any]) -> Any:
    return caller.delete(f"/clients/{refusal['client_id']}/refusals/{refusal['id']}")


def run_of(session: Session, rows: OpenRun) -> Run:
    session.expire_all()
    return session.get_one(Run, rows.run_id)


def statuses(session: Session, rows: OpenRun) -> list[UpdateStatus]:
    session.expire_all()
    return [session.get_one(ClientUpdate, update_id).status for update_id in rows.update_ids]


def sentences(session: Session, kind: EventKind) -> list[str]:
    return list(session.scalars(select(Event.message).where(Event.kind == kind)))


def test_the_run_goes_on_without_the_client_where_fewer_are_enough(
    admin: Caller, session: Session, session_factory: SessionFactory, rows: OpenRun
) -> None:
    claim = take(session_factory, rows.update_ids[0])
    answer = refuse(admin, rows, 0)
    assert answer.status_code == 201, answer.text
    assert statuses(session, rows) == [
        UpdateStatus.DECLINED,
        UpdateStatus.PENDING,
        UpdateStatus.PENDING,
    ]
    assert run_of(session, rows).status is RunStatus.RUNNING
    assert session.scalars(select(Attempt.outcome)).one() == "cancelled"
    with session_factory() as other:  # whoever trained for it has lost its lease
        assert not leases.heartbeat(other, claim, 30, stage="training", step=1, num_steps=2)
        assert leases.claim(other, rows.update_ids[0], "worker", 30) is None
    name = answer.json()["client_name"]
    (told,) = sentences(session, EventKind.CLIENT_REFUSED)
    assert told == f"{name} does not take part in this run: Not yet agreed."
    (left_out,) = sentences(session, EventKind.CLIENT_LEFT_OUT)
    assert f"Round 1 goes on without {name}: 2 updates are enough." in left_out
    audited = session.scalars(select(AuditEntry).where(AuditEntry.action == "client.refuse_run"))
    assert audited.one().object_id == rows.client_ids[0]
    live = admin.get(f"/runs/{rows.run_id}/live").json()
    assert [(one["client_name"], one["reason"]) for one in live["refusals"]] == [
        (name, "Not yet agreed.")
    ]
    assert admin.get(f"/runs/{rows.run_id}/refusals").json() == live["refusals"]


def test_too_few_clients_end_the_run_with_the_reason(
    admin: Caller, session: Session, rows: OpenRun
) -> None:
    assert refuse(admin, rows, 0).status_code == 201
    second = refuse(admin, rows, 1, "The hardware is busy")
    run = run_of(session, rows)
    assert run.status is RunStatus.FAILED
    name = second.json()["client_name"]
    assert run.error == (
        f"{name} does not take part in this run: The hardware is busy. Round 1 needs 2 updates, "
        "and only 1 can come."
    )
    problem(refuse(admin, rows, 2), 409, "run_ended")


def test_what_was_handed_in_counts(
    admin: Caller, session: Session, session_factory: SessionFactory, rows: OpenRun
) -> None:
    claim = take(session_factory, rows.update_ids[0])
    with session_factory() as other:
        leases.accept(other, claim, leases.Result(metrics={}))
        other.commit()
    assert refuse(admin, rows, 0).status_code == 201
    assert statuses(session, rows)[0] is UpdateStatus.ACCEPTED
    assert run_of(session, rows).status is RunStatus.RUNNING


def test_a_refusal_is_withdrawn_while_the_run_is_paused(
    admin: Caller, session: Session, rows: OpenRun
) -> None:
    set_policy(session, rows, RoundPolicy(), quorum=3)
    admin.post(f"/runs/{rows.run_id}/pause")
    refusal = refuse(admin, rows, 0).json()
    assert run_of(session, rows).status is RunStatus.PAUSED  # it waits, although all are needed
    assert withdraw(admin, refusal).status_code == 204
    assert statuses(session, rows) == [UpdateStatus.PENDING] * 3
    assert admin.post(f"/runs/{rows.run_id}/resume").json()["status"] == "running"
    assert sentences(session, EventKind.REFUSAL_WITHDRAWN) == [
        f"{refusal['client_name']} takes part again."
    ]


def test_a_run_that_a_refusal_ended_goes_on_when_it_is_withdrawn(
    admin: Caller, session: Session, rows: OpenRun
) -> None:
    set_policy(session, rows, RoundPolicy(), quorum=3)
    refusal = refuse(admin, rows, 0).json()
    assert run_of(session, rows).status is RunStatus.FAILED
    resumed = admin.post(f"/runs/{rows.run_id}/resume").json()  # it still stands
    assert resumed["status"] == "failed"
    assert refusal["client_name"] in resumed["error"]
    assert withdraw(admin, refusal).status_code == 204
    assert admin.post(f"/runs/{rows.run_id}/resume").json()["status"] == "running"
    assert statuses(session, rows) == [UpdateStatus.PENDING] * 3


def test_a_client_refuses_for_itself_and_only_while_others_do_not_wait(
    admin: Caller, session: Session, rows: OpenRun
) -> None:
    client = session.get_one(Client, rows.client_ids[0])
    itself = admin.with_token(issue_credential(session, client))
    session.commit()
    problem(refuse(itself, rows, 1), 403, "forbidden")
    refusal = refuse(itself, rows, 0).json()
    assert refusal["refused_by"] == client.name
    assert refuse(itself, rows, 0, "again").json() == refusal  # the first stays
    listed = itself.get(f"/clients/{client.id}/refusals").json()["items"]
    assert listed == [refusal]
    problem(withdraw(itself, refusal), 409, "refusal_stands")
    admin.post(f"/runs/{rows.run_id}/pause")
    assert withdraw(itself, refusal).status_code == 204
    problem(withdraw(itself, refusal), 404, "not_found")


def test_a_run_of_others_is_not_there(admin: Caller, session: Session, rows: OpenRun) -> None:
    stranger = add_open_run(session, 1, Execution.REMOTE)
    body = {"run_id": str(rows.run_id), "reason": "curious"}
    problem(admin.post(f"/clients/{stranger.client_ids[0]}/refusals", body), 404, "not_found")


@pytest.mark.parametrize("reason", ["", "   ", "x" * 501, "\0"])
def test_a_reason_is_a_sentence(admin: Caller, rows: OpenRun, reason: str) -> None:
    problem(refuse(admin, rows, 0, reason), 422, "invalid")


def members(session: Session, policy: RoundPolicy) -> tuple[Run, list[Client], OpenRun]:
    """A queued run of four."""
    clients = add_clients(session, 4)
    run = add_run(session, clients, RunStatus.QUEUED, num_rounds=2)
    run.round_policy = policy.model_dump(mode="json")
    session.commit()
    return run, clients, OpenRun(run.id, UUID(int=0), [client.id for client in clients], [])


@pytest.mark.parametrize("round_number", [0, 2], ids=["training", "delivery"])
def test_later_rounds_are_planned_without_the_client(
    admin: Caller, session: Session, round_number: int
) -> None:
    run, clients, rows = members(session, RoundPolicy(min_clients=3))
    assert refuse(admin, rows, 2).status_code == 201
    run = run_of(session, rows)
    run.round_number = round_number
    opening = plan_opening(run, clients, set(), refusals_of(session, run.id))
    assert {client.id for client in opening.clients} == set(rows.client_ids) - {rows.client_ids[2]}
    assert (opening.num_members, opening.quorum) == (3, 3)


def test_a_draw_goes_on_while_enough_are_willing(admin: Caller, session: Session) -> None:
    run, clients, rows = members(session, RoundPolicy(clients_per_round=3))
    refuse(admin, rows, 0)
    opening = plan_opening(run_of(session, rows), clients, set(), refusals_of(session, run.id))
    assert rows.client_ids[0] not in {client.id for client in opening.clients}
    refuse(admin, rows, 1)
    with pytest.raises(FederatedError, match="3 of 4 clients are needed: withdraw the refusal"):
        plan_opening(run_of(session, rows), clients, set(), refusals_of(session, run.id))
