"""Where somebody is signed in, and ending that from elsewhere."""

from sqlalchemy.orm import Session

from backend.contracts.enums import Role
from tests.factories import PASSWORD, Caller, add_user, problem


def _signed_in(anonymous: Caller, username: str) -> Caller:
    answer = anonymous.post("/sessions", {"username": username, "password": PASSWORD})
    return anonymous.with_token(answer.json()["token"])


def test_a_session_is_ended_from_another(anonymous: Caller, session: Session) -> None:
    add_user(session, Role.VIEWER, "vera")
    here, lost = _signed_in(anonymous, "vera"), _signed_in(anonymous, "vera")
    listed = here.get("/sessions").json()
    assert [item["is_current"] for item in listed] == [False, True]
    assert {item["address"] for item in listed} == {"testclient"}
    assert here.delete(f"/sessions/{listed[0]['id']}").status_code == 204
    problem(lost.get("/users/me"), 401, "session_revoked")
    assert len(here.get("/sessions").json()) == 1


def test_nobody_ends_the_session_of_another(
    anonymous: Caller, session: Session, admin: Caller
) -> None:
    add_user(session, Role.VIEWER, "vera")
    vera = _signed_in(anonymous, "vera")
    own = vera.get("/sessions").json()[0]["id"]
    problem(admin.delete(f"/sessions/{own}"), 404, "not_found")
    assert vera.get("/users/me").status_code == 200


def test_a_disabled_user_is_out_at_once(admin: Caller, anonymous: Caller, session: Session) -> None:
    user = add_user(session, Role.OPERATOR, "olga")
    olga = _signed_in(anonymous, "olga")
    answer = admin.request("PATCH", f"/users/{user.id}", json={"is_disabled": True})
    assert answer.json()["disabled_at"]
    problem(olga.get("/users/me"), 401, "session_revoked")
    response = anonymous.post("/sessions", {"username": "olga", "password": PASSWORD})
    problem(response, 401, "user_disabled")
    admin.request("PATCH", f"/users/{user.id}", json={"is_disabled": False, "role": "viewer"})
    assert _signed_in(anonymous, "olga").get("/users/me").json()["role"] == "viewer"
