"""How often one token and one address may call, counted in a real Redis."""

from collections.abc import Iterator

import pytest
from pydantic import SecretStr
from redis import Redis
from starlette.testclient import TestClient

from backend.main import create_app
from backend.settings import Settings
from tests.factories import Caller, problem


@pytest.fixture
def limited(settings: Settings, operator: Caller, broker: Redis) -> Iterator[Caller]:
    """An operator on an API with small limits, whose counters start at zero."""
    low = settings.model_copy(
        update={
            "requests_per_minute": 3,
            "requests_per_minute_per_address": 8,
            "sign_ins_per_minute_per_address": 2,
        }
    )
    with TestClient(create_app(low), raise_server_exceptions=False) as http:
        yield Caller(http, operator.token)


def test_a_token_is_slowed_down_and_others_are_not(limited: Caller) -> None:
    assert [limited.get("/federations").status_code for _ in range(3)] == [200] * 3
    response = limited.get("/federations")
    body = problem(response, 429, "too_many_requests")
    assert "More than 3 requests a minute with this token" in body["detail"]
    assert 1 <= int(response.headers["retry-after"]) <= 121
    problem(limited.with_token("fbs_another").get("/federations"), 401, "unauthenticated")


def test_an_address_is_slowed_down_whatever_tokens_it_tries(limited: Caller) -> None:
    for number in range(8):
        problem(limited.with_token(f"fbs_{number}").get("/users/me"), 401, "unauthenticated")
    body = problem(limited.with_token("fbs_8").get("/users/me"), 429, "too_many_requests")
    assert "8 requests a minute from this address" in body["detail"]


def test_signing_in_has_a_limit_of_its_own(limited: Caller) -> None:
    wrong = {"username": "nobody", "password": "wrong"}
    anonymous = limited.with_token("")
    for _ in range(2):
        problem(anonymous.post("/sessions", wrong), 401, "wrong_credentials")
    body = problem(anonymous.post("/sessions", wrong), 429, "too_many_requests")
    assert "2 requests a minute to sign in from this address" in body["detail"]


def test_health_checks_are_free(limited: Caller) -> None:
    assert {limited.http.get("/healthz").status_code for _ in range(20)} == {200}


def test_requests_pass_when_redis_is_away(settings: Settings, operator: Caller) -> None:
    nowhere = settings.model_copy(update={"redis_url": SecretStr("redis://127.0.0.1:1/0")})
    with TestClient(create_app(nowhere), raise_server_exceptions=False) as http:
        assert Caller(http, operator.token).get("/federations").status_code == 200
