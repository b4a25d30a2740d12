"""A name is locked after failures in a row, whether it is somebody's or nobody's."""

from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import update
from sqlalchemy.orm import Session

from backend.auth.lockout import MAX_FAILURES
from backend.contracts.enums import Role
from backend.db.models import SignInFailure
from tests.factories import PASSWORD, Caller, add_user, problem


def _fail(anonymous: Caller, username: str, times: int = MAX_FAILURES) -> None:
    for _ in range(times):
        response = anonymous.post("/sessions", {"username": username, "password": "wrong"})
        problem(response, 401, "wrong_credentials")


def _sign_in(anonymous: Caller, username: str = "vera") -> int:
    response = anonymous.post("/sessions", {"username": username, "password": PASSWORD})
    return int(response.status_code)


@pytest.mark.parametrize("username", ["vera", "nobody"])
def test_failures_in_a_row_lock_the_name(
    anonymous: Caller, session: Session, username: str
) -> None:
    add_user(session, Role.VIEWER, "vera")
    _fail(anonymous, username)
    response = anonymous.post("/sessions", {"username": username, "password": PASSWORD})
    body = problem(response, 429, "sign_in_locked")
    assert "Try again in 15 minutes" in body["detail"]
    assert 890 <= int(response.headers["retry-after"]) <= 900


def test_a_lock_ends_and_success_starts_anew(anonymous: Caller, session: Session) -> None:
    add_user(session, Role.VIEWER, "vera")
    _fail(anonymous, "vera")
    session.execute(
        update(SignInFailure).values(locked_until=datetime.now(UTC) - timedelta(seconds=1))
    )
    session.commit()
    assert _sign_in(anonymous) == 201
    _fail(anonymous, "vera", MAX_FAILURES - 1)
    assert _sign_in(anonymous) == 201  # the count began anew


def test_others_are_not_locked(anonymous: Caller, session: Session) -> None:
    add_user(session, Role.VIEWER, "vera")
    _fail(anonymous, "olga")
    assert _sign_in(anonymous) == 201


def test_an_administrator_unlocks(admin: Caller, anonymous: Caller, session: Session) -> None:
    user = add_user(session, Role.VIEWER, "vera")
    _fail(anonymous, "vera")
    assert admin.request("PATCH", f"/users/{user.id}", json={}).status_code == 200
    assert _sign_in(anonymous) == 201
