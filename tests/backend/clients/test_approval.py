"""Keys bound to a federation, and clients that wait for approval."""

from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from backend.contracts.enums import Role, RunStatus
from backend.db.models import Run
from tests.factories import (
    Caller,
    make_client,
    make_federation,
    make_key,
    make_run,
    problem,
    registration,
    signed_in,
    unchanged,
)


@pytest.fixture
def federation(operator: Caller) -> dict[str, Any]:
    client, _ = make_client(operator)
    return make_federation(operator, client, visibility="members")


def register(operator: Caller, secret: str, **changes: Any) -> dict[str, Any]:
    response = operator.post("/clients/register", registration(secret, **changes))
    assert response.status_code == 201, response.text
    return dict(response.json()["client"])


def clients_of(operator: Caller, federation: dict[str, Any]) -> set[str]:
    found = operator.get(f"/federations/{federation['id']}").json()
    return {client["id"] for client in found["clients"]}


def test_a_bound_key_leads_into_its_federation(
    operator: Caller, federation: dict[str, Any]
) -> None:
    made = make_key(operator, federation_id=federation["id"])
    assert made["key"]["federation_id"] == federation["id"]
    client = register(operator, made["secret"])
    assert not client["is_pending"]
    assert client["id"] in clients_of(operator, federation)


def test_a_pending_client_takes_part_only_when_approved(
    operator: Caller, viewer: Caller, federation: dict[str, Any], engine: Engine
) -> None:
    made = make_key(operator, federation_id=federation["id"], requires_approval=True)
    client = register(operator, made["secret"])
    assert client["is_pending"]
    assert client["id"] not in clients_of(operator, federation)
    approval = f"/clients/{client['id']}/approval"
    with unchanged(engine):
        body = {"name": "f", "client_ids": [client["id"]]}
        answer = problem(operator.post("/federations", body), 422, "client_pending")
        problem(viewer.post(approval), 403, "forbidden")
    assert client["name"] in answer["detail"]
    assert operator.post(approval).json()["is_pending"] is False
    assert client["id"] in clients_of(operator, federation)
    with unchanged(engine):
        assert operator.post(approval).status_code == 200  # twice is harmless


def test_members_stay_the_same_while_a_run_goes_on(
    operator: Caller, federation: dict[str, Any], session: Session, engine: Engine
) -> None:
    run = make_run(operator, federation)
    secret = make_key(operator, federation_id=federation["id"])["secret"]
    session.get_one(Run, run["id"]).status = RunStatus.RUNNING
    session.commit()
    with unchanged(engine):
        answer = operator.post("/clients/register", registration(secret))
        problem(answer, 409, "federation_busy")
    session.get_one(Run, run["id"]).status = RunStatus.COMPLETED
    session.commit()
    register(operator, secret)


def test_a_rank_above_the_federations_is_refused(
    operator: Caller, federation: dict[str, Any], engine: Engine
) -> None:
    secret = make_key(operator, federation_id=federation["id"])["secret"]
    with unchanged(engine):
        answer = operator.post("/clients/register", registration(secret, lora_rank=32))
        problem(answer, 422, "rank_above_global_rank")


def test_a_key_is_bound_by_operators_of_the_federation(
    operator: Caller,
    anonymous: Caller,
    federation: dict[str, Any],
    session: Session,
    engine: Engine,
) -> None:
    stranger = signed_in(anonymous, session, Role.OPERATOR)
    with unchanged(engine):
        for caller, number in ((stranger, federation["id"]), (operator, str(uuid4()))):
            body = {"label": "k", "federation_id": number}
            answer = problem(caller.post("/enrolment-keys", body), 422, "unknown_federation")
            assert answer["errors"][0]["field"] == "federation_id"
