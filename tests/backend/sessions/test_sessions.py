"""Signing in and out."""

import time
from datetime import UTC, datetime, timedelta
from statistics import median

import pytest
from sqlalchemy import Engine, select, update
from sqlalchemy.orm import Session

from backend.contracts.enums import Role
from backend.db.models import Token
from tests.factories import PASSWORD, Caller, add_user, problem, unchanged


def test_a_user_signs_in_and_out(anonymous: Caller, session: Session) -> None:
    add_user(session, Role.VIEWER, "vera")
    response = anonymous.post("/sessions", {"username": "vera", "password": PASSWORD})
    assert response.status_code == 201
    answer = response.json()
    assert answer["token"].startswith("fbs_")
    assert answer["user"]["username"] == "vera"
    expires_at = datetime.fromisoformat(answer["expires_at"])
    remaining = expires_at - datetime.now(UTC)
    assert timedelta(hours=11.9) < remaining <= timedelta(hours=12)
    vera = anonymous.with_token(answer["token"])
    assert vera.get("/users/me").json() == answer["user"]
    assert vera.delete("/sessions/current").status_code == 204
    body = problem(vera.get("/users/me"), 401, "session_revoked")
    assert "Sign in again" in body["detail"]


def test_the_secret_is_not_stored(anonymous: Caller, session: Session) -> None:
    add_user(session, Role.VIEWER, "vera")
    answer = anonymous.post("/sessions", {"username": "vera", "password": PASSWORD}).json()
    stored = session.scalars(select(Token)).one()
    assert answer["token"] not in repr(vars(stored))
    assert len(stored.secret_hash) == 64


@pytest.mark.parametrize("username", ["vera", "nobody"])
def test_wrong_password_and_unknown_user_look_the_same(
    anonymous: Caller, session: Session, engine: Engine, username: str
) -> None:
    add_user(session, Role.VIEWER, "vera")
    with unchanged(engine):
        response = anonymous.post("/sessions", {"username": username, "password": "wrong"})
    body = problem(response, 401, "wrong_credentials")
    assert body["detail"] == (
        "The user name or the password is wrong. Check both, or ask an administrator."
    )
    assert response.headers["www-authenticate"] == "Bearer"


def test_wrong_password_and_unknown_user_cost_the_same(anonymous: Caller, session: Session) -> None:
    add_user(session, Role.VIEWER, "vera")

    def seconds(username: str) -> float:
        started = time.process_time()  # of all threads, so other programs do not matter
        anonymous.post("/sessions", {"username": username, "password": "wrong"})
        return time.process_time() - started

    known = median(seconds("vera") for _ in range(5))
    unknown = median(seconds("nobody") for _ in range(5))
    assert 0.5 < unknown / known < 2


def test_an_expired_session_is_refused(viewer: Caller, session: Session) -> None:
    assert viewer.get("/users/me").status_code == 200
    session.execute(update(Token).values(expires_at=datetime.now(UTC) - timedelta(seconds=1)))
    session.commit()
    body = problem(viewer.get("/users/me"), 401, "session_expired")
    assert body["detail"] == "This session has expired. Sign in again."


@pytest.mark.parametrize(
    "header", ["", "Bearer", "Basic dXNlcjpwYXNz", "Bearer fbs_unknown", "Bearer \xff\xfe"]
)
def test_other_authorizations_are_refused(anonymous: Caller, header: str) -> None:
    response = anonymous.get("/users/me", headers={"Authorization": header.encode("latin-1")})
    problem(response, 401, "unauthenticated")


def test_a_refused_password_is_not_repeated(anonymous: Caller) -> None:
    response = anonymous.post("/sessions", {"username": "vera", "password": "x" * 1001})
    body = problem(response, 422, "invalid")
    assert [(e["field"], e["value"]) for e in body["errors"]] == [("password", None)]
    assert "xxx" not in response.text
