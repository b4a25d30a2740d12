"""Secrets are in no log line, whatever is called and however it ends."""

import io
import logging
import time
from typing import Any

import pyotp
import pytest
from sqlalchemy.orm import Session

from backend.contracts.enums import Role
from backend.logging import JsonFormatter
from tests.factories import (
    NDJSON,
    PASSWORD,
    ROWS,
    Caller,
    add_user,
    make_client,
    make_key,
    problem,
    registration,
)

NEW_PASSWORD = "battery staple clip and more"
GUESS = "a wrong guess of a password"


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """All that is logged, also by libraries and at the finest level."""
    lines = io.StringIO()
    handler = logging.StreamHandler(lines)
    handler.setFormatter(JsonFormatter())
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [*root.handlers, handler])
    monkeypatch.setattr(root, "level", logging.DEBUG)
    return lines


def account_secrets(anonymous: Caller, username: str) -> list[str]:
    """Signs in and out with everything that an account can have; gives what was secret."""
    body = {"username": username, "password": PASSWORD}
    problem(anonymous.post("/sessions", body | {"password": GUESS}), 401, "wrong_credentials")
    first = anonymous.post("/sessions", body).json()["token"]
    me = anonymous.with_token(first)
    offer = me.post("/users/me/second-factor").json()
    totp = pyotp.TOTP(offer["secret"])
    code = totp.at(int(time.time()) - 30)  # the step before counts too; the next one stays fresh
    recovery = me.post("/users/me/second-factor/confirmation", {"code": code}).json()["codes"]
    problem(anonymous.post("/sessions", body | {"code": "000000"}), 401, "wrong_second_factor")
    second = anonymous.post("/sessions", body | {"code": recovery[0]}).json()["token"]
    personal = me.post("/users/me/tokens", {"name": "nightly", "scope": "administer"}).json()
    change = {"current_password": PASSWORD, "new_password": NEW_PASSWORD}
    assert me.post("/users/me/password", change).status_code == 204
    problem(anonymous.with_token(second).get("/users/me"), 401, "session_revoked")
    problem(anonymous.with_token(first + "x").get("/users/me"), 401, "unauthenticated")
    return [PASSWORD, NEW_PASSWORD, GUESS, first, second, offer["secret"], *recovery,
            personal["token"]]  # fmt: skip


def client_secrets(operator: Caller) -> list[str]:
    """Enrols clients and calls with their credentials; gives what was secret."""
    secret = make_key(operator, max_uses=1)["secret"]
    registered: dict[str, Any] = operator.post("/clients/register", registration(secret)).json()
    problem(operator.post("/clients/register", registration(secret)), 403, "enrolment_key_used_up")
    problem(operator.post("/clients/register", registration("fbe_guess")), 403,
            "enrolment_key_unknown")  # fmt: skip
    client, caller = make_client(operator)
    assert caller.put(f"/clients/{client['id']}/dataset", content=ROWS, headers=NDJSON).is_success
    caller.post("/clients/me/heartbeat")
    caller.post("/agent/lease", {})
    rotated = operator.post(f"/clients/{client['id']}/credential").json()["credential"]
    problem(caller.get("/clients/me"), 401, "credential_revoked")
    assert caller.token is not None
    return [secret, "fbe_guess", registered["credential"], caller.token, rotated]


def test_no_secret_is_logged(
    anonymous: Caller, operator: Caller, session: Session, log: io.StringIO
) -> None:
    user = add_user(session, Role.ADMINISTRATOR)
    secrets = account_secrets(anonymous, user.username) + client_secrets(operator)
    assert operator.token is not None
    secrets.append(operator.token)
    written = log.getvalue()
    assert written.count("/api/v1/clients/register") >= 3  # the walk was seen
    assert len(secrets) == len(set(secrets)) == 21
    assert [secret for secret in secrets if secret in written] == []
