"""Tokens with which programs act for people, within a scope."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import select, update
from sqlalchemy.orm import Session

from backend.db.models import Token
from tests.factories import PASSWORD, Caller, problem

KEY = {"label": "for tests"}


def _token(person: Caller, scope: str = "read") -> tuple[dict[str, Any], Caller]:
    response = person.post("/users/me/tokens", {"name": "nightly", "scope": scope})
    assert response.status_code == 201, response.text
    made = response.json()
    return made, person.with_token(made["token"])


def test_a_token_acts_for_its_owner(operator: Caller, session: Session) -> None:
    made, program = _token(operator, "operate")
    assert made["token"].startswith("fbp_")
    assert program.get("/users/me").json() == operator.get("/users/me").json()
    assert program.post("/enrolment-keys", KEY).status_code == 201
    stored = session.scalars(select(Token).where(Token.name == "nightly")).one()
    assert made["token"] not in repr(vars(stored))
    assert stored.last_used_at is not None
    listed = operator.get("/users/me/tokens").json()
    assert [item["name"] for item in listed] == ["nightly"]
    assert "token" not in listed[0]


@pytest.mark.parametrize(
    ("scope", "allowed", "refused"), [("read", "GET", "POST"), ("operate", "POST", "PATCH")]
)
def test_a_scope_limits_what_a_token_may_do(
    admin: Caller, scope: str, allowed: str, refused: str
) -> None:
    _, program = _token(admin, scope)
    calls = {
        "GET": lambda: program.get("/federations"),
        "POST": lambda: program.post("/enrolment-keys", KEY),
        "PATCH": lambda: program.get("/users"),
    }
    assert calls[allowed]().is_success
    body = problem(calls[refused](), 403, "forbidden")
    assert f"with a token of scope {scope}" in body["detail"]


def test_a_scope_gives_nothing_that_the_owner_lacks(viewer: Caller) -> None:
    _, program = _token(viewer, "administer")
    problem(program.get("/users"), 403, "forbidden")


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/users/me/tokens", {"name": "more"}),
        ("POST", "/users/me/second-factor", None),
        ("GET", "/sessions", None),
        (
            "POST",
            "/users/me/password",
            {"current_password": PASSWORD, "new_password": "another long password"},
        ),
    ],
)
def test_a_token_does_not_change_the_account(
    operator: Caller, method: str, path: str, body: object
) -> None:
    _, program = _token(operator, "administer")
    problem(program.request(method, path, json=body), 403, "session_needed")


def test_an_ended_and_an_expired_token_are_refused(operator: Caller, session: Session) -> None:
    made, program = _token(operator)
    assert operator.delete(f"/users/me/tokens/{made['id']}").status_code == 204
    problem(program.get("/federations"), 401, "token_revoked")
    _, other = _token(operator)
    session.execute(
        update(Token)
        .where(Token.name == "nightly")
        .values(expires_at=datetime.now(UTC) - timedelta(seconds=1))
    )
    session.commit()
    problem(other.get("/federations"), 401, "token_expired")


def test_nobody_ends_the_token_of_another(operator: Caller, admin: Caller) -> None:
    made, program = _token(operator)
    problem(admin.delete(f"/users/me/tokens/{made['id']}"), 404, "not_found")
    assert program.get("/federations").status_code == 200
