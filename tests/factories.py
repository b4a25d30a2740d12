"""Makes things through the real API, and asks about what did not change."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any

from sqlalchemy import Engine, select
from sqlalchemy.orm import Session
from starlette.testclient import TestClient

from backend.auth.passwords import hash_password
from backend.auth.service import issue_session
from backend.contracts.enums import Role
from backend.db.base import Base
from backend.db.ids import new_id
from backend.db.models import User

PASSWORD = "correct horse battery staple"
ROWS = (
    b'{"question": "What is 2 + 3?", "answer": "5", "split": "train"}\n'
    b'{"question": "What is 1 + 3?", "answer": "4", "split": "validation"}\n'
    b'{"question": "What is 4 + 2?", "answer": "6", "split": "test"}\n'
)
NDJSON = {"Content-Type": "application/x-ndjson"}


@dataclass(frozen=True)
class Caller:
    """Sends requests to the API, with a token if there is one."""

    http: TestClient
    token: str | None = None

    def request(self, method: str, path: str, **options: Any) -> Any:
        headers = dict(options.pop("headers", {}))
        if self.token:
            headers.setdefault("Authorization", f"Bearer {self.token}")
        return self.http.request(method, "/api/v1" + path, headers=headers, **options)

    def get(self, path: str, **options: Any) -> Any:
        return self.request("GET", path, **options)

    def post(self, path: str, body: object = None, **options: Any) -> Any:
        return self.request("POST", path, json=body, **options)

    def put(self, path: str, **options: Any) -> Any:
        return self.request("PUT", path, **options)

    def delete(self, path: str, **options: Any) -> Any:
        return self.request("DELETE", path, **options)

    def with_token(self, token: str) -> "Caller":
        return Caller(self.http, token)


@lru_cache
def password_hash() -> str:
    return hash_password(PASSWORD)


def add_user(session: Session, role: Role, username: str | None = None) -> User:
    """A user in the database with `PASSWORD`; committed."""
    user = User(
        username=username or f"{role.value}-{new_id()}",
        password_hash=password_hash(),
        role=role,
    )
    session.add(user)
    session.commit()
    return user


def signed_in(caller: Caller, session: Session, role: Role) -> Caller:
    """A caller with a session of a fresh user."""
    user, expires_at = add_user(session, role), datetime.now(UTC) + timedelta(hours=1)
    _, token = issue_session(session, user, expires_at)
    session.commit()
    return caller.with_token(token)


def make_key(operator: Caller, **changes: Any) -> dict[str, Any]:
    """A fresh enrolment key as the API gives it: `key` and `secret`."""
    response = operator.post("/enrolment-keys", {"label": "tests", "max_uses": 100, **changes})
    assert response.status_code == 201, response.text
    return dict(response.json())


def registration(secret: str, **changes: Any) -> dict[str, Any]:
    """A valid body of `POST /clients/register`."""
    return {
        "enrolment_key": secret,
        "name": f"client-{new_id()}",
        "base_model": {"source": "builtin", "id": "tiny_llama"},
        "lora_rank": 8,
        "task": "fill_in",
        "dataset": {"source": "builtin", "task": "arithmetic_fill_in", "num_train": 8},
        **changes,
    }


def make_client(operator: Caller, **changes: Any) -> tuple[dict[str, Any], Caller]:
    """A registered client and a caller with its credential."""
    secret = make_key(operator)["secret"]
    response = operator.post("/clients/register", registration(secret, **changes))
    assert response.status_code == 201, response.text
    answer = response.json()
    return answer["client"], operator.with_token(answer["credential"])


def make_federation(operator: Caller, *clients: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """A federation of these clients."""
    body = {
        "name": f"federation-{new_id()}",
        "client_ids": [client["id"] for client in clients],
        "visibility": "platform",  # most tests are about something else
        **changes,
    }
    response = operator.post("/federations", body)
    assert response.status_code == 201, response.text
    return dict(response.json())


def make_run(operator: Caller, federation: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """A created run."""
    body = {"strategy": {"name": "local_only"}, "num_rounds": 2, **changes}
    response = operator.post(f"/federations/{federation['id']}/runs", body)
    assert response.status_code == 201, response.text
    return dict(response.json())


def problem(response: Any, status: int, code: str) -> dict[str, Any]:
    """The problem details of an answer that must have this status and code."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    body = dict(response.json())
    assert body["status"] == status
    assert body["code"] == code, body
    return body


@contextmanager
def unchanged(engine: Engine) -> Iterator[None]:
    """Fails when the block changes any row; signs of life and failed sign-ins do not count."""
    before = _rows(engine)
    yield
    assert _rows(engine) == before


_SIGNS_OF_LIFE = {"last_seen_at", "last_used_at"}


def _rows(engine: Engine) -> dict[str, list[tuple[Any, ...]]]:
    with engine.connect() as connection:
        return {
            table.name: sorted(
                (
                    tuple(row)
                    for row in connection.execute(
                        select(*(c for c in table.columns if c.name not in _SIGNS_OF_LIFE))
                    )
                ),
                key=repr,
            )
            for table in Base.metadata.sorted_tables
            if table.name != "sign_in_failures"
        }
