"""Changing one's own password."""

from sqlalchemy.orm import Session

from backend.contracts.enums import Role
from tests.factories import PASSWORD, Caller, add_user, problem

NEW = "an entirely new password"


def test_a_new_password_ends_what_the_old_one_opened(anonymous: Caller, session: Session) -> None:
    add_user(session, Role.VIEWER, "vera")
    credentials = {"username": "vera", "password": PASSWORD}
    here, there = (
        anonymous.with_token(anonymous.post("/sessions", credentials).json()["token"])
        for _ in range(2)
    )
    token = here.post("/users/me/tokens", {"name": "nightly"}).json()["token"]
    wrong = {"current_password": "no such password", "new_password": NEW}
    problem(here.post("/users/me/password", wrong), 422, "wrong_password")
    change = {"current_password": PASSWORD, "new_password": NEW}
    assert here.post("/users/me/password", change).status_code == 204
    assert here.get("/users/me").status_code == 200
    problem(there.get("/users/me"), 401, "session_revoked")
    problem(anonymous.with_token(token).get("/users/me"), 401, "token_revoked")
    problem(anonymous.post("/sessions", credentials), 401, "wrong_credentials")
    assert anonymous.post("/sessions", credentials | {"password": NEW}).status_code == 201
