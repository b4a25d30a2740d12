"""Errors that no feature foresees, and what surrounds every answer."""

import io
import json
import logging
import re
from typing import Any

import pytest
from sqlalchemy import Engine
from sqlalchemy.orm import Session
from starlette.testclient import TestClient

from backend.account import routes as account
from backend.logging import JsonFormatter
from backend.users import service
from tests.factories import PASSWORD, Caller, problem, unchanged

JSON = {"Content-Type": "application/json"}


def test_unknown_places_and_methods(viewer: Caller) -> None:
    body = problem(viewer.get("/nothing"), 404, "not_found")
    assert "/api/v1/nothing" in body["detail"]
    response = viewer.delete("/federations")
    body = problem(response, 405, "method_not_allowed")
    assert "DELETE is not possible" in body["detail"]
    assert response.headers["allow"]


@pytest.mark.parametrize(
    "content",
    [
        b"{",
        b"\xff\xfe{}",
        b'{"username": "\xff", "password": "x"}',
        b"[" * 100_000,
        b'{"username": ' + b"9" * 5000 + b', "password": "x"}',
        b"null",
        b"[]",
        b'"text"',
        b"",
        b'{"username": {"a": 1}, "password": ["x"]}',
        b'{"username": "\\u0000", "password": "x"}',
        b'{"username": "\\ud800", "password": "\\ud800"}',
        b'{"\\ud800": 1}',
        b'{"username": NaN, "password": Infinity}',
    ],
    ids=repr,
)
def test_odd_bodies_are_the_callers_fault(
    anonymous: Caller, engine: Engine, content: bytes
) -> None:
    with unchanged(engine):
        response = anonymous.request("POST", "/sessions", content=content, headers=JSON)
    assert response.status_code in {400, 422}, response.text
    assert problem(response, response.status_code, response.json()["code"])["detail"]


def test_a_body_of_another_type_is_refused(anonymous: Caller) -> None:
    response = anonymous.request(
        "POST", "/sessions", content=b"a=b", headers={"Content-Type": "text/plain"}
    )
    problem(response, 422, "invalid")


def test_a_large_body_is_refused(anonymous: Caller) -> None:
    large = json.dumps({"username": "x" * 2**20, "password": "x"}).encode()
    response = anonymous.request("POST", "/sessions", content=large, headers=JSON)
    problem(response, 413, "too_large")
    response = anonymous.request("POST", "/sessions", content=iter([large]), headers=JSON)
    body = problem(response, 413, "too_large")
    assert "1048576 bytes" in body["detail"]


def test_an_unexpected_error_shows_nothing_and_is_logged(
    viewer: Caller, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_arguments: object) -> None:
        raise RuntimeError("secret detail")

    monkeypatch.setattr(account, "get_user", broken)
    response = viewer.get("/users/me", headers={"X-Request-ID": "seen-by-people"})
    problem(response, 500, "internal_error")
    assert "secret detail" not in response.text
    assert response.headers["x-request-id"] == "seen-by-people"
    [record] = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert record.exc_info is not None
    assert "secret detail" in str(record.exc_info[1])


def test_answers_carry_security_headers(anonymous: Caller, http: TestClient) -> None:
    for response in (anonymous.get("/users/me"), anonymous.get("/nothing")):
        assert response.headers["x-content-type-options"] == "nosniff"
        assert response.headers["x-frame-options"] == "DENY"
        assert response.headers["referrer-policy"] == "no-referrer"
        assert response.headers["cache-control"] == "no-store"
    assert "cache-control" not in http.get("/healthz").headers


def test_answers_as_pages_run_nothing_but_the_description(http: TestClient) -> None:
    for path in ("/healthz", "/api/v1/users/me", "/api/v1/openapi.json", "/nothing"):
        policy = http.get(path).headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; frame-ancestors 'none'"), path
        assert "script-src" not in policy
    page = http.get("/docs")
    assert page.status_code == 200
    policy = page.headers["content-security-policy"]
    sources = set(re.findall(r"https://[a-z.]+", policy))
    assert set(re.findall(r'(?:src|href)="(https://[a-z.]+)', page.text)) <= sources
    assert "frame-ancestors 'none'" in policy
    assert http.get("/redoc").status_code == 404


def test_no_other_origin_may_read_answers(http: TestClient) -> None:
    origin = {"Origin": "https://elsewhere.example"}
    preflight = origin | {
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization",
    }
    for answer in (
        http.get("/healthz", headers=origin),
        http.get("/api/v1/users/me", headers=origin),
        http.options("/api/v1/sessions", headers=preflight),
    ):
        assert not [name for name in answer.headers if name.startswith("access-control")]
    assert http.options("/api/v1/sessions", headers=preflight).status_code == 405


def test_request_ids_of_others_are_taken_only_when_harmless(anonymous: Caller) -> None:
    given = anonymous.get("/x", headers={"X-Request-ID": "ok-1"})
    assert given.headers["x-request-id"] == "ok-1"
    odd = anonymous.get("/x", headers={"X-Request-ID": 'a" b' + "x" * 100})
    assert len(odd.headers["x-request-id"]) == 36


def test_log_lines_are_json_without_secrets(
    anonymous: Caller, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = io.StringIO()
    handler = logging.StreamHandler(lines)
    handler.setFormatter(JsonFormatter())
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [handler])
    service.ensure_administrator(session, "admin", PASSWORD)
    session.commit()
    response = anonymous.post("/sessions", {"username": "admin", "password": PASSWORD})
    logged = [json.loads(line) for line in lines.getvalue().splitlines()]
    [request] = [line for line in logged if line["logger"] == "backend.requests"]
    assert (request["method"], request["path"], request["status"]) == (
        "POST",
        "/api/v1/sessions",
        201,
    )
    assert request["request_id"] == response.headers["x-request-id"]
    assert PASSWORD not in lines.getvalue()
    assert response.json()["token"] not in lines.getvalue()


def operations(document: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    return [
        (f"{method} {path}", operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]


def test_the_description_is_complete(http: TestClient) -> None:
    document = http.get("/api/v1/openapi.json").json()
    assert document["components"]["schemas"]["Problem"]["properties"]["code"]
    assert document["components"]["schemas"]["FieldError"]
    for name, operation in operations(document):
        assert operation["tags"], name
        assert operation["summary"], name
        if "/api/v1/" not in name:
            continue
        for status in ("401", "403", "404", "409", "413", "422"):
            content = operation["responses"][status]["content"]
            assert list(content) == ["application/problem+json"], name


def test_examples_of_the_description_are_valid(http: TestClient) -> None:
    document = http.get("/api/v1/openapi.json").json()
    schemas = document["components"]["schemas"]
    bodies = {
        name
        for _, operation in operations(document)
        for media in operation.get("requestBody", {}).get("content", {}).values()
        if (name := media["schema"].get("$ref", "").rpartition("/")[2])
    }
    without = {name for name in bodies if "examples" not in schemas[name]}
    assert without == set()
