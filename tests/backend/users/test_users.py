"""Users and what their roles allow."""

import json

import pytest
from sqlalchemy import Engine, delete, select, update
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from backend.contracts.enums import Role
from backend.db.models import AuditEntry, User
from backend.users.service import ensure_administrator
from tests.factories import PASSWORD, Caller, problem, unchanged

NEW = {"username": "olga", "password": PASSWORD, "role": "operator"}


def test_an_administrator_adds_a_user(admin: Caller, session: Session) -> None:
    response = admin.post("/users", NEW)
    assert response.status_code == 201
    assert response.json()["role"] == "operator"
    answer = admin.post("/sessions", {"username": "olga", "password": PASSWORD})
    assert answer.status_code == 201
    stored = session.scalars(select(User).where(User.username == "olga")).one()
    assert stored.password_hash.startswith("$argon2id$")
    entry = session.scalars(select(AuditEntry).where(AuditEntry.action == "user.create")).one()
    assert (entry.actor_kind, entry.object_id) == ("user", stored.id)
    assert entry.address == "testclient"
    assert PASSWORD not in repr(vars(entry))


def test_a_name_is_given_once(admin: Caller, engine: Engine) -> None:
    admin.post("/users", NEW)
    with unchanged(engine):
        body = problem(admin.post("/users", NEW), 409, "username_taken")
    assert "'olga'" in body["detail"]


@pytest.mark.parametrize(
    ("change", "field", "words"),
    [
        ({"password": "short"}, "password", "at least 12"),
        ({"role": "king"}, "role", "'administrator', 'operator' or 'viewer', 'king' was given"),
        ({"username": " "}, "username", "at least 1 character"),
        ({"username": "a\x00b"}, "username", "was given"),
        ({"username": "a\ud800b"}, "username", "unicode"),
        ({"rolle": "x"}, "rolle", "not a field of this request"),
    ],
)
def test_wrong_fields_are_named(
    admin: Caller, engine: Engine, change: dict[str, str], field: str, words: str
) -> None:
    content = json.dumps(NEW | change)
    with unchanged(engine):
        response = admin.request(
            "POST", "/users", content=content, headers={"Content-Type": "application/json"}
        )
    body = problem(response, 422, "invalid")
    assert [e["field"] for e in body["errors"]] == [field]
    assert words in body["errors"][0]["message"]
    assert words in body["detail"]


@pytest.mark.parametrize("role", ["operator", "viewer"])
def test_only_administrators_see_and_add_users(
    role: str, request: pytest.FixtureRequest, engine: Engine
) -> None:
    caller: Caller = request.getfixturevalue(role)
    with unchanged(engine):
        body = problem(caller.post("/users", NEW), 403, "forbidden")
        problem(caller.get("/users"), 403, "forbidden")
    assert "needs the role administrator" in body["detail"]


def test_pages_follow_each_other(admin: Caller) -> None:
    for number in range(4):
        admin.post("/users", NEW | {"username": f"user-{number}"})
    first = admin.get("/users", params={"limit": 3}).json()
    assert [user["username"] for user in first["items"]] == ["user-3", "user-2", "user-1"]
    rest = admin.get("/users", params={"limit": 3, "cursor": first["next_cursor"]}).json()
    assert rest["items"][0]["username"] == "user-0"
    assert len(rest["items"]) == 2
    assert rest["next_cursor"] is None


@pytest.mark.parametrize(
    ("query", "field"),
    [({"limit": 0}, "limit"), ({"limit": 10**30}, "limit"), ({"cursor": "x"}, "cursor")],
)
def test_wrong_pages_are_refused(admin: Caller, query: dict[str, str], field: str) -> None:
    body = problem(admin.get("/users", params=query), 422, "invalid")
    assert body["errors"][0]["field"] == field


def test_the_first_administrator_is_made_once(session: Session) -> None:
    assert ensure_administrator(session, "admin", PASSWORD)
    assert not ensure_administrator(session, "other", PASSWORD)
    session.commit()
    users = session.scalars(select(User)).all()
    assert [(user.username, user.role) for user in users] == [("admin", Role.ADMINISTRATOR)]


def test_an_administrator_changes_a_role(admin: Caller, session: Session) -> None:
    user = admin.post("/users", NEW).json()
    answer = admin.request("PATCH", f"/users/{user['id']}", json={"role": "viewer"})
    assert answer.json()["role"] == "viewer"
    entry = session.scalars(select(AuditEntry).where(AuditEntry.action == "user.update")).one()
    assert entry.data["before"]["role"] == "operator"
    assert entry.data["after"]["role"] == "viewer"


def test_administrators_keep_their_own_access(admin: Caller, engine: Engine) -> None:
    me = admin.get("/users/me").json()["id"]
    with unchanged(engine):
        for change in ({"role": "viewer"}, {"is_disabled": True}):
            problem(admin.request("PATCH", f"/users/{me}", json=change), 409, "own_access")


def test_the_audit_trail_cannot_be_changed(admin: Caller, session: Session) -> None:
    admin.post("/users", NEW)
    for statement in (delete(AuditEntry), update(AuditEntry).values(actor_name="nobody")):
        with pytest.raises(DBAPIError, match="append-only"), session.begin_nested():
            session.execute(statement)
