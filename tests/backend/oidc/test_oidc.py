"""Signing in with a sign-in service, over real HTTP."""

from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest
from joserfc.jwk import OctKey, RSAKey
from pydantic import SecretStr
from sqlalchemy import select, update
from sqlalchemy.orm import Session
from starlette.testclient import TestClient

from backend.contracts.enums import Role
from backend.db.models import SignInTicket, User
from backend.settings import Settings
from tests.backend.oidc.fake_provider import CLIENT_ID, CLIENT_SECRET, CODE, FakeProvider, served
from tests.factories import Caller, add_user, problem

ADDRESS = "olga@clinic.example"


@pytest.fixture
def provider(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, http: TestClient
) -> Iterator[FakeProvider]:
    with served() as fake:
        for name, value in {
            "oidc_issuer": fake.issuer,
            "oidc_client_id": CLIENT_ID,
            "oidc_client_secret": SecretStr(CLIENT_SECRET),
            "oidc_redirect_url": "http://testserver/api/v1/oidc/callback",
            "oidc_dashboard_url": "http://dashboard.test/",
            "oidc_default_role": Role.VIEWER,
        }.items():
            monkeypatch.setattr(settings, name, value)
        http.cookies.clear()
        yield fake
        http.cookies.clear()


def begin(caller: Caller, provider: FakeProvider) -> str:
    """Goes to the service as a browser would; gives the state."""
    url = caller.get("/oidc").json()["url"]
    response = caller.http.get(url, follow_redirects=False)
    assert response.status_code == 303, response.text
    where = urlsplit(response.headers["location"])
    assert f"{where.scheme}://{where.netloc}{where.path}" == f"{provider.issuer}/authorize"
    provider.authorization = dict(parse_qsl(where.query))
    return provider.authorization["state"]


def come_back(caller: Caller, state: str, code: str = CODE) -> Any:
    params = {"state": state, "code": code}
    return caller.get("/oidc/callback", params=params, follow_redirects=False)


def ticket_of(response: Any) -> str:
    assert response.status_code == 303, response.text
    where = response.headers["location"]
    assert where.startswith("http://dashboard.test/?ticket=fbt_")
    return str(dict(parse_qsl(urlsplit(where).query))["ticket"])


def test_a_person_signs_in_and_is_known_again(
    anonymous: Caller, provider: FakeProvider, session: Session
) -> None:
    ticket = ticket_of(come_back(anonymous, begin(anonymous, provider)))
    assert ticket not in session.scalars(select(SignInTicket.secret_hash)).all()
    answer = anonymous.post("/oidc/session", {"ticket": ticket})
    assert answer.status_code == 201
    made = answer.json()
    assert (made["user"]["username"], made["user"]["role"]) == (ADDRESS, "viewer")
    assert anonymous.with_token(made["token"]).get("/users/me").json()["username"] == ADDRESS
    problem(anonymous.post("/oidc/session", {"ticket": ticket}), 401, "ticket_refused")
    provider.claims = {"email": "new-name@clinic.example"}  # the subject decides, not the address
    ticket = ticket_of(come_back(anonymous, begin(anonymous, provider)))
    again = anonymous.post("/oidc/session", {"ticket": ticket}).json()
    assert again["user"]["id"] == made["user"]["id"]


def test_what_the_browser_carries(anonymous: Caller, provider: FakeProvider) -> None:
    response = anonymous.get("/oidc/sign-in", follow_redirects=False)
    cookie = response.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=lax" in cookie
    assert "Path=/api/v1/oidc" in cookie
    query = dict(parse_qsl(urlsplit(response.headers["location"]).query))
    assert (query["response_type"], query["code_challenge_method"]) == ("code", "S256")
    for name in ("state", "nonce"):
        assert len(query[name]) >= 43
        assert query[name] not in cookie  # sealed
    assert CLIENT_SECRET not in response.headers["location"]


def test_another_browser_cannot_end_what_this_one_began(
    anonymous: Caller, provider: FakeProvider
) -> None:
    state = begin(anonymous, provider)
    problem(come_back(anonymous, "x" + state), 401, "sign_in_not_begun")
    anonymous.http.cookies.clear()
    problem(come_back(anonymous, state), 401, "sign_in_not_begun")
    headers = {"Cookie": "fedbraid_sign_in=forged"}
    response = anonymous.get(
        "/oidc/callback", params={"state": state, "code": CODE}, headers=headers
    )
    problem(response, 401, "sign_in_not_begun")
    assert provider.codes_taken == 0


@pytest.mark.parametrize(
    "lie",
    [
        {"nonce": "of another sign-in"},
        {"nonce": None},
        {"aud": "another-program"},
        {"aud": [CLIENT_ID, "another-program"]},
        {"iss": "https://elsewhere.example"},
        {"exp": 1_000_000_000},
        {"exp": None},
        {"sub": None},
    ],
    ids=str,
)
def test_a_token_that_says_anything_else_is_refused(
    anonymous: Caller, provider: FakeProvider, lie: dict[str, Any]
) -> None:
    provider.claims = lie
    state = begin(anonymous, provider)
    problem(come_back(anonymous, state), 401, "sign_in_not_confirmed")
    assert provider.codes_taken == 1


def test_a_token_of_another_key_is_refused(anonymous: Caller, provider: FakeProvider) -> None:
    provider.signing_key = RSAKey.generate_key(2048)
    problem(come_back(anonymous, begin(anonymous, provider)), 401, "sign_in_not_confirmed")
    provider.signing_key, provider.algorithm = OctKey.import_key(CLIENT_SECRET), "HS256"
    problem(come_back(anonymous, begin(anonymous, provider)), 401, "sign_in_not_confirmed")


def test_a_wrong_code_is_refused(anonymous: Caller, provider: FakeProvider) -> None:
    answer = come_back(anonymous, begin(anonymous, provider), "another")
    problem(answer, 401, "sign_in_not_confirmed")


def test_who_may_come_in_is_configured(
    anonymous: Caller,
    provider: FakeProvider,
    settings: Settings,
    session: Session,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(settings, "oidc_allowed_domains", ["hospital.example"])
    problem(come_back(anonymous, begin(anonymous, provider)), 403, "domain_not_allowed")
    monkeypatch.setattr(settings, "oidc_allowed_domains", ["clinic.example"])
    provider.claims = {"email_verified": False}
    problem(come_back(anonymous, begin(anonymous, provider)), 403, "domain_not_allowed")
    provider.claims = {}
    monkeypatch.setattr(settings, "oidc_default_role", None)
    problem(come_back(anonymous, begin(anonymous, provider)), 403, "no_account")
    made = add_user(session, Role.OPERATOR, ADDRESS)
    ticket = ticket_of(come_back(anonymous, begin(anonymous, provider)))
    user = anonymous.post("/oidc/session", {"ticket": ticket}).json()["user"]
    assert (user["id"], user["role"]) == (str(made.id), "operator")


def test_a_disabled_user_stays_out(
    anonymous: Caller, provider: FakeProvider, session: Session
) -> None:
    ticket = ticket_of(come_back(anonymous, begin(anonymous, provider)))
    session.execute(update(User).values(disabled_at=User.created_at))
    session.commit()
    problem(anonymous.post("/oidc/session", {"ticket": ticket}), 401, "user_disabled")
    problem(come_back(anonymous, begin(anonymous, provider)), 401, "user_disabled")


def test_an_old_ticket_is_refused(
    anonymous: Caller, provider: FakeProvider, session: Session
) -> None:
    ticket = ticket_of(come_back(anonymous, begin(anonymous, provider)))
    session.execute(
        update(SignInTicket).values(expires_at=select(User.created_at).limit(1).scalar_subquery())
    )
    session.commit()
    problem(anonymous.post("/oidc/session", {"ticket": ticket}), 401, "ticket_refused")


def test_a_service_that_is_away_or_another_is_said(
    anonymous: Caller, provider: FakeProvider, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settings, "oidc_issuer", provider.issuer + "/")
    answer = anonymous.get("/oidc/sign-in", follow_redirects=False)
    assert "FEDBRAID_OIDC_ISSUER" in problem(answer, 502, "sign_in_service_failed")["detail"]
    monkeypatch.setattr(settings, "oidc_issuer", "http://127.0.0.1:9")
    answer = anonymous.get("/oidc/sign-in", follow_redirects=False)
    problem(answer, 502, "sign_in_service_failed")


def test_without_a_service_there_is_none(anonymous: Caller) -> None:
    assert anonymous.get("/oidc").json() == {"url": None}
    problem(anonymous.get("/oidc/sign-in"), 404, "no_sign_in_service")
