"""Second factors: switched on with a code, needed from then on, each code once."""

import time

import pyotp
import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from backend.auth import second_factor
from backend.auth.sealing import Seal, SealError
from backend.contracts.enums import Role
from backend.db.models import User
from tests.factories import PASSWORD, Caller, add_user, problem


def _sign_in(anonymous: Caller, code: str | None = None) -> object:
    body = {"username": "vera", "password": PASSWORD} | ({} if code is None else {"code": code})
    return anonymous.post("/sessions", body)


@pytest.fixture
def vera(anonymous: Caller, session: Session) -> Caller:
    add_user(session, Role.VIEWER, "vera")
    answer = anonymous.post("/sessions", {"username": "vera", "password": PASSWORD})
    return anonymous.with_token(answer.json()["token"])


def _switch_on(vera: Caller) -> tuple[pyotp.TOTP, list[str]]:
    offer = vera.post("/users/me/second-factor").json()
    assert offer["uri"].startswith("otpauth://totp/FedBraid:vera?secret=")
    app = pyotp.TOTP(offer["secret"])
    # The code of the step before is accepted, so that signing in has the present one left.
    code = app.at(time.time() - second_factor.STEP_SECONDS)
    response = vera.post("/users/me/second-factor/confirmation", {"code": code})
    assert response.status_code == 200, response.text
    return app, response.json()["codes"]


def test_a_code_is_needed_and_works_once(vera: Caller, anonymous: Caller) -> None:
    app, _ = _switch_on(vera)
    assert vera.get("/users/me").json()["has_second_factor"] is True
    problem(_sign_in(anonymous), 401, "second_factor_required")
    problem(_sign_in(anonymous, "000000"), 401, "wrong_second_factor")
    code = app.now()
    assert _sign_in(anonymous, code).status_code == 201  # type: ignore[attr-defined]
    problem(_sign_in(anonymous, code), 401, "wrong_second_factor")


def test_an_offer_alone_changes_nothing(vera: Caller, anonymous: Caller) -> None:
    vera.post("/users/me/second-factor")
    wrong = vera.post("/users/me/second-factor/confirmation", {"code": "000000"})
    problem(wrong, 422, "wrong_second_factor")
    assert _sign_in(anonymous).status_code == 201  # type: ignore[attr-defined]


def test_a_recovery_code_works_once(vera: Caller, anonymous: Caller) -> None:
    _, codes = _switch_on(vera)
    assert len(set(codes)) == second_factor.NUM_RECOVERY_CODES
    assert _sign_in(anonymous, codes[0].upper()).status_code == 201  # type: ignore[attr-defined]
    problem(_sign_in(anonymous, codes[0]), 401, "wrong_second_factor")
    assert _sign_in(anonymous, codes[1]).status_code == 201  # type: ignore[attr-defined]


def test_wrong_codes_lock_the_name_too(vera: Caller, anonymous: Caller) -> None:
    _switch_on(vera)
    for _ in range(5):
        problem(_sign_in(anonymous, "000000"), 401, "wrong_second_factor")
    problem(_sign_in(anonymous, "000000"), 429, "sign_in_locked")


def test_it_is_removed_with_a_code_or_by_an_administrator(
    vera: Caller, admin: Caller, anonymous: Caller, session: Session
) -> None:
    app, _ = _switch_on(vera)
    problem(vera.post("/users/me/second-factor"), 409, "second_factor_exists")
    removal = vera.post("/users/me/second-factor/removal", {"code": app.now()})
    assert removal.status_code == 204
    assert _sign_in(anonymous).status_code == 201  # type: ignore[attr-defined]
    _switch_on(vera)
    user = session.scalars(select(User).where(User.username == "vera")).one()
    admin.request("PATCH", f"/users/{user.id}", json={"reset_second_factor": True})
    assert _sign_in(anonymous).status_code == 201  # type: ignore[attr-defined]


def test_the_secret_is_stored_sealed(vera: Caller, session: Session) -> None:
    secret = vera.post("/users/me/second-factor").json()["secret"]
    user = session.scalars(select(User).where(User.username == "vera")).one()
    assert user.totp_secret is not None
    assert secret not in user.totp_secret


def test_another_key_does_not_open_a_seal() -> None:
    sealed = Seal(b"one key").close("secret")
    assert Seal(b"one key").open(sealed) == "secret"
    with pytest.raises(SealError, match="FEDBRAID_SECRET_KEY"):
        Seal(b"another").open(sealed)


def test_codes_are_those_of_the_standard() -> None:
    # RFC 6238, appendix B, SHA-1, cut to six digits: T = 59 s gives 94287082.
    secret = "GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ"
    assert second_factor.matching_step(secret, "287082", None, now=59) == 1
    assert second_factor.matching_step(secret, "287082", 1, now=59) is None  # used
    assert second_factor.matching_step(secret, "287082", None, now=59 + 60) is None  # too old
