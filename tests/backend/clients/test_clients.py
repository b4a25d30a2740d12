"""Clients that have joined."""

from datetime import timedelta
from uuid import uuid4

import pytest
from sqlalchemy import Engine, func, select, update
from sqlalchemy.orm import Session

from backend.db.models import AuditEntry, Client
from tests.factories import Caller, make_client, make_federation, problem, unchanged


def last_seen(session: Session) -> object:
    session.rollback()
    return session.scalars(select(Client.last_seen_at)).one()


def test_clients_are_listed_newest_first(operator: Caller, viewer: Caller) -> None:
    made = [make_client(operator)[0] for _ in range(3)]
    make_federation(operator, *made)
    answer = viewer.get("/clients").json()
    assert [client["id"] for client in answer["items"]] == [c["id"] for c in reversed(made)]


def test_a_client_sees_itself_only(operator: Caller) -> None:
    north, as_north = make_client(operator)
    south, _ = make_client(operator)
    assert as_north.get(f"/clients/{north['id']}").json()["id"] == north["id"]
    body = problem(as_north.get(f"/clients/{south['id']}"), 403, "forbidden")
    assert south["id"] in body["detail"]
    problem(as_north.get("/clients"), 403, "forbidden")


def test_a_user_is_no_client(operator: Caller) -> None:
    body = problem(operator.get("/clients/me"), 403, "forbidden")
    assert "fbc_" in body["detail"]


def test_an_unknown_client(viewer: Caller) -> None:
    problem(viewer.get(f"/clients/{uuid4()}"), 404, "not_found")


def test_every_call_moves_last_seen_but_not_too_often(operator: Caller, session: Session) -> None:
    _, client = make_client(operator)
    assert client.post("/clients/me/heartbeat").status_code == 204
    first = last_seen(session)
    assert first is not None
    client.post("/clients/me/heartbeat")
    assert last_seen(session) == first
    session.execute(update(Client).values(last_seen_at=func.now() - timedelta(seconds=6)))
    session.commit()
    problem(client.get("/users"), 403, "forbidden")  # a refused call is a sign of life, too
    assert last_seen(session) > first  # type: ignore[operator]


def test_a_rotated_credential_replaces_the_old_one(operator: Caller) -> None:
    client, old = make_client(operator)
    answer = operator.post(f"/clients/{client['id']}/credential").json()
    assert answer["client"]["id"] == client["id"]
    problem(old.get("/clients/me"), 401, "credential_revoked")
    assert old.with_token(answer["credential"]).get("/clients/me").status_code == 200


def test_a_revoked_credential_ends(operator: Caller, session: Session, engine: Engine) -> None:
    client, caller = make_client(operator)
    path = f"/clients/{client['id']}/credential"
    assert operator.delete(path).status_code == 204
    body = problem(caller.post("/clients/me/heartbeat"), 401, "credential_revoked")
    assert "Ask an operator" in body["detail"]
    with unchanged(engine):
        assert operator.delete(path).status_code == 204
    actions = session.scalars(select(AuditEntry.action).order_by(AuditEntry.id)).all()
    assert actions[-1] == "client.revoke_credential"


@pytest.mark.parametrize("method", ["POST", "DELETE"])
def test_credentials_are_for_operators(
    operator: Caller, viewer: Caller, engine: Engine, method: str
) -> None:
    client, caller = make_client(operator)
    path = f"/clients/{client['id']}/credential"
    with unchanged(engine):
        problem(viewer.request(method, path), 403, "forbidden")
        problem(caller.request(method, path), 403, "forbidden")
        problem(operator.request(method, f"/clients/{uuid4()}/credential"), 404, "not_found")
