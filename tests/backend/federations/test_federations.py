"""Federations: members, ranks, names."""

from typing import Any
from uuid import uuid4

from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from backend.db.models import AuditEntry
from tests.factories import Caller, make_client, make_federation, make_run, problem, unchanged


def test_a_federation_has_its_members(operator: Caller, viewer: Caller, session: Session) -> None:
    north, _ = make_client(operator, lora_rank=4)
    south, _ = make_client(operator, lora_rank=16)
    made = make_federation(operator, south, north, description="two clinics", global_rank=16)
    assert {client["id"] for client in made["clients"]} == {north["id"], south["id"]}
    assert (made["num_clients"], made["num_runs"], made["global_rank"]) == (2, 0, 16)
    make_run(operator, made)
    again = viewer.get(f"/federations/{made['id']}").json()
    assert again == made | {"num_runs": 1}
    entry = session.scalars(
        select(AuditEntry).where(AuditEntry.action == "federation.create")
    ).one()
    assert str(entry.object_id) == made["id"]


def test_federations_are_listed_newest_first(operator: Caller, viewer: Caller) -> None:
    client, _ = make_client(operator)
    made = [make_federation(operator, client)["id"] for _ in range(3)]
    first = viewer.get("/federations", params={"limit": 2}).json()
    assert [item["id"] for item in first["items"]] == [made[2], made[1]]
    assert first["items"][0]["num_clients"] == 1
    rest = viewer.get("/federations", params={"cursor": first["next_cursor"]}).json()
    assert [item["id"] for item in rest["items"]] == [made[0]]


def test_a_rank_above_the_global_rank_is_refused(operator: Caller, engine: Engine) -> None:
    small, _ = make_client(operator, lora_rank=8)
    large, _ = make_client(operator, lora_rank=32, name="large-clinic")
    body = {"name": "f", "global_rank": 16, "client_ids": [small["id"], large["id"]]}
    with unchanged(engine):
        answer = problem(operator.post("/federations", body), 422, "rank_above_global_rank")
    assert answer["detail"] == (
        "The global rank 16 is below a member's LoRA rank: large-clinic has rank 32. Set "
        "`global_rank` to 32 or more, or leave those clients out."
    )
    assert [(e["field"], e["value"]) for e in answer["errors"]] == [("global_rank", 16)]
    assert operator.post("/federations", body | {"global_rank": 32}).status_code == 201


def test_unknown_members_are_named(operator: Caller, engine: Engine) -> None:
    client, _ = make_client(operator)
    unknown = str(uuid4())
    body = {"name": "f", "client_ids": [client["id"], unknown]}
    with unchanged(engine):
        answer = problem(operator.post("/federations", body), 422, "unknown_client")
    assert [(e["field"], e["value"]) for e in answer["errors"]] == [("client_ids.1", unknown)]
    assert f"There is no client {unknown}" in answer["detail"]


def test_a_member_named_twice_counts_once(operator: Caller) -> None:
    client, _ = make_client(operator)
    assert make_federation(operator, client, client)["num_clients"] == 1


def test_a_name_is_given_once(operator: Caller, engine: Engine) -> None:
    client, _ = make_client(operator)
    make_federation(operator, client, name="Three clinics")
    body = {"name": "Three clinics", "client_ids": [client["id"]]}
    with unchanged(engine):
        answer = problem(operator.post("/federations", body), 409, "federation_name_taken")
    assert "'Three clinics'" in answer["detail"]


def test_wrong_fields_are_named(operator: Caller, engine: Engine) -> None:
    client, _ = make_client(operator)
    good = {"name": "f", "client_ids": [client["id"]]}
    wrong: dict[str, dict[str, Any]] = {
        "client_ids": {"client_ids": []},
        "client_ids.0": {"client_ids": ["north"]},
        "global_rank": {"global_rank": 10**30},
        "description": {"description": "a\x00b"},
    }
    with unchanged(engine):
        for field, change in wrong.items():
            answer = problem(operator.post("/federations", good | change), 422, "invalid")
            assert [error["field"] for error in answer["errors"]] == [field]


def test_viewers_and_clients_make_none(operator: Caller, viewer: Caller, engine: Engine) -> None:
    client, as_client = make_client(operator)
    body = {"name": "f", "client_ids": [client["id"]]}
    with unchanged(engine):
        answer = problem(viewer.post("/federations", body), 403, "forbidden")
        problem(as_client.post("/federations", body), 403, "forbidden")
    assert "needs the role operator" in answer["detail"]
    assert "viewer" in answer["detail"]


def test_an_unknown_federation(viewer: Caller) -> None:
    for path in ("", "/runs"):
        problem(viewer.get(f"/federations/{uuid4()}{path}"), 404, "not_found")
    answer = problem(viewer.get("/federations/one"), 422, "invalid")
    assert answer["errors"][0]["field"] == "federation_id"
