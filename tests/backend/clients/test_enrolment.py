"""Enrolment keys and registration."""

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import Engine, func, select, update
from sqlalchemy.orm import Session

from backend.db.models import AuditEntry, Client, EnrolmentKey, Token
from tests.factories import Caller, make_key, problem, registration, unchanged


def test_a_client_joins_with_a_key(operator: Caller, anonymous: Caller, session: Session) -> None:
    made = make_key(operator, max_uses=2)
    assert made["secret"].startswith("fbe_")
    response = anonymous.post("/clients/register", registration(made["secret"], name=" north "))
    assert response.status_code == 201
    client = response.json()["client"]
    assert client["name"] == "north"
    assert client["architecture"] == {"family": "llama", "num_layers": 4, "hidden_size": 128}
    assert client["lora_alpha"] == 16.0  # twice the rank
    assert client["last_seen_at"] is None
    credential = response.json()["credential"]
    assert credential.startswith("fbc_")
    me = anonymous.with_token(credential).get("/clients/me").json()
    assert me["id"] == client["id"]
    assert me["last_seen_at"] is not None
    key = session.get_one(EnrolmentKey, made["key"]["id"])
    assert key.num_uses == 1
    secrets = {token.secret_hash for token in session.scalars(select(Token))}
    assert made["secret"] not in secrets | {key.secret_hash}
    entry = session.scalars(select(AuditEntry).where(AuditEntry.action == "client.register")).one()
    assert (entry.actor_kind, str(entry.object_id)) == ("client", client["id"])


def test_keys_are_listed_without_secrets(operator: Caller) -> None:
    made = [make_key(operator, label=f"key {number}") for number in range(3)]
    answer = operator.get("/enrolment-keys")
    assert [key["label"] for key in answer.json()["items"]] == ["key 2", "key 1", "key 0"]
    assert all(key["secret"] not in answer.text for key in made)


def refused(anonymous: Caller, engine: Engine, secret: str, code: str) -> str:
    with unchanged(engine):
        response = anonymous.post("/clients/register", registration(secret))
    assert secret not in response.text
    return str(problem(response, 403, code)["detail"])


def test_an_unknown_key_is_refused(anonymous: Caller, engine: Engine) -> None:
    detail = refused(anonymous, engine, "fbe_nobody", "enrolment_key_unknown")
    assert "ask an operator" in detail


def test_a_used_up_key_is_refused(operator: Caller, anonymous: Caller, engine: Engine) -> None:
    secret = make_key(operator, label="pilot", max_uses=1)["secret"]
    assert anonymous.post("/clients/register", registration(secret)).status_code == 201
    detail = refused(anonymous, engine, secret, "enrolment_key_used_up")
    assert "'pilot' is used up (1 of 1 uses)" in detail


def test_an_expired_key_is_refused(
    operator: Caller, anonymous: Caller, engine: Engine, session: Session
) -> None:
    secret = make_key(operator)["secret"]
    ended = datetime(2026, 1, 2, 3, 4, tzinfo=UTC)
    session.execute(update(EnrolmentKey).values(expires_at=ended))
    session.commit()
    detail = refused(anonymous, engine, secret, "enrolment_key_expired")
    assert "expired at 2026-01-02 03:04 UTC" in detail


def test_a_revoked_key_is_refused(operator: Caller, anonymous: Caller, engine: Engine) -> None:
    made = make_key(operator)
    path = f"/enrolment-keys/{made['key']['id']}"
    assert operator.delete(path).status_code == 204
    with unchanged(engine):  # revoking twice is harmless
        assert operator.delete(path).status_code == 204
    detail = refused(anonymous, engine, made["secret"], "enrolment_key_revoked")
    assert "was revoked" in detail


def test_revoking_what_is_not_there(operator: Caller) -> None:
    path = "/enrolment-keys/00000000-0000-7000-8000-000000000000"
    problem(operator.delete(path), 404, "not_found")


def test_registrations_at_once_share_no_use(
    operator: Caller, anonymous: Caller, session: Session
) -> None:
    secret = make_key(operator, max_uses=1)["secret"]

    def register(_number: int) -> Any:
        return anonymous.post("/clients/register", registration(secret))

    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(register, range(4)))
    assert sorted(answer.status_code for answer in answers) == [201, 403, 403, 403]
    for answer in answers:
        if answer.status_code == 403:
            problem(answer, 403, "enrolment_key_used_up")
    assert session.scalar(select(func.count()).select_from(Client)) == 1
    assert session.scalars(select(EnrolmentKey.num_uses)).all() == [1]


def test_a_refused_registration_gives_the_use_back(
    operator: Caller, anonymous: Caller, engine: Engine
) -> None:
    secret = make_key(operator, max_uses=2)["secret"]
    anonymous.post("/clients/register", registration(secret, name="north"))
    with unchanged(engine):
        response = anonymous.post("/clients/register", registration(secret, name="north"))
    body = problem(response, 409, "client_name_taken")
    assert "'north'" in body["detail"]
    answer = anonymous.post("/clients/register", registration(secret, name="south"))
    assert answer.status_code == 201


@pytest.mark.parametrize(
    ("change", "field", "words"),
    [
        ({"lora_rank": 129}, "lora_rank", "rank 129 is above the width 128"),
        ({"lora_rank": 0}, "lora_rank", "greater than or equal to 1, 0 was given"),
        ({"lora_rank": 10**40}, "lora_rank", "was given"),
        ({"lora_alpha": "nan"}, "lora_alpha", "'nan' was given"),
        ({"task": "choice"}, "dataset.task", "is for task 'fill_in', but `task` is 'choice'"),
        (
            {"dataset": {"source": "builtin", "task": "arithmetic_fill_in", "num_train": 0}},
            "dataset.num_train",
            "greater than or equal to 1, 0 was given",
        ),
        ({"base_model": {"source": "builtin"}}, "base_model.id", "is missing"),
        ({"base_model": {"source": "hub", "id": "a\x00b"}}, "base_model.id", "was given"),
        (
            {"base_model": {"source": "builtin", "id": "gpt"}},
            "base_model.id",
            "no built-in base model 'gpt'. Choose one of tiny_llama, tiny_gemma, tiny_qwen2",
        ),
        ({"base_model": {"source": "hub", "id": "org/m"}}, "architecture", "Declare"),
        (
            {"architecture": {"family": "llama", "num_layers": 5, "hidden_size": 128}},
            "architecture",
            "5 layers, width 128) contradicts base model 'tiny_llama', which has family llama, 4",
        ),
    ],
)
def test_wrong_registrations_are_refused(
    operator: Caller,
    anonymous: Caller,
    engine: Engine,
    change: dict[str, Any],
    field: str,
    words: str,
) -> None:
    secret = make_key(operator)["secret"]
    with unchanged(engine):
        response = anonymous.post("/clients/register", registration(secret, **change))
    assert response.status_code == 422, response.text
    body = response.json()
    assert [error["field"] for error in body["errors"]] == [field]
    assert words in body["detail"]
    assert secret not in response.text


def test_a_hub_model_counts_as_declared(operator: Caller, anonymous: Caller) -> None:
    architecture = {"family": "llama", "num_layers": 32, "hidden_size": 4096}
    body = registration(
        make_key(operator)["secret"],
        base_model={"source": "hub", "id": "org/model"},
        architecture=architecture,
    )
    answer = anonymous.post("/clients/register", body)
    assert answer.json()["client"]["architecture"] == architecture


def test_nobody_without_a_key_learns_about_folders(anonymous: Caller) -> None:
    body = registration("fbe_guess", base_model={"source": "folder", "id": "/etc"})
    problem(anonymous.post("/clients/register", body), 403, "enrolment_key_unknown")


def test_a_viewer_makes_no_keys(viewer: Caller, engine: Engine) -> None:
    with unchanged(engine):
        body = problem(viewer.post("/enrolment-keys", {"label": "x"}), 403, "forbidden")
        problem(viewer.get("/enrolment-keys"), 403, "forbidden")
    assert "needs the role operator" in body["detail"]


@pytest.mark.parametrize("hours", [0, -1, 24 * 366])
def test_keys_end_within_a_year(operator: Caller, hours: float) -> None:
    response = operator.post("/enrolment-keys", {"label": "x", "expires_in_hours": hours})
    body = problem(response, 422, "invalid")
    assert body["errors"][0]["field"] == "expires_in_hours"


def test_a_key_lasts_as_long_as_asked(operator: Caller) -> None:
    key = make_key(operator, expires_in_hours=2)["key"]
    remaining = datetime.fromisoformat(key["expires_at"]) - datetime.now(UTC)
    assert timedelta(hours=1.9) < remaining <= timedelta(hours=2)
