"""The audit trail: who sees it, how it is filtered, what its export holds."""

import csv
import io

import pytest

from tests.factories import PASSWORD, Caller, make_client, make_federation, problem


@pytest.fixture
def history(admin: Caller, operator: Caller) -> dict[str, str]:
    """Some changes by two people and a client."""
    admin.post("/users", {"username": "=cmd()", "password": PASSWORD, "role": "viewer"})
    client, _ = make_client(operator)
    federation = make_federation(operator, client)
    return {"client": client["id"], "federation": federation["id"]}


def _actions(caller: Caller, query: str = "") -> list[str]:
    answer = caller.get(f"/audit{query}")
    assert answer.status_code == 200, answer.text
    return [item["action"] for item in answer.json()["items"]]


def test_who_did_what_from_where(admin: Caller, history: dict[str, str]) -> None:
    entries = admin.get("/audit").json()["items"]
    assert [entry["action"] for entry in entries][:2] == ["federation.create", "client.register"]
    newest = entries[0]
    assert (newest["actor_kind"], newest["address"]) == ("user", "testclient")
    assert newest["object_id"] == history["federation"]


def test_filters_narrow_it_down(admin: Caller, operator: Caller, history: dict[str, str]) -> None:
    olga = operator.get("/users/me").json()["username"]
    assert _actions(admin, "?action=user.create") == ["user.create"]
    assert _actions(admin, "?action=federation") == ["federation.create"]
    assert _actions(admin, "?action=fed") == []
    assert set(_actions(admin, f"?actor_name={olga}")) == {
        "federation.create",
        "enrolment_key.create",
    }
    assert _actions(admin, "?actor_kind=client") == ["client.register"]
    assert _actions(admin, f"?object_id={history['client']}") == ["client.register"]
    assert _actions(admin, "?until=2020-01-01T00:00:00Z") == []
    assert len(_actions(admin, "?since=2020-01-01T00:00:00Z&limit=2")) == 2


def test_pages_follow_one_another(admin: Caller, history: dict[str, str]) -> None:
    everything = _actions(admin)
    first = admin.get("/audit?limit=2").json()
    second = admin.get(f"/audit?limit=200&cursor={first['next_cursor']}").json()
    assert [e["action"] for e in first["items"] + second["items"]] == everything


def test_the_export_holds_all_and_runs_nothing(admin: Caller, history: dict[str, str]) -> None:
    answer = admin.get("/audit/export.csv")
    assert answer.headers["content-type"].startswith("text/csv")
    rows = list(csv.DictReader(io.StringIO(answer.text)))
    assert [row["action"] for row in rows] == list(reversed(_actions(admin)))
    assert not any(cell.startswith("=") for row in rows for cell in row.values())


@pytest.mark.parametrize("path", ["/audit", "/audit/export.csv"])
def test_only_administrators_read_it(operator: Caller, viewer: Caller, path: str) -> None:
    for caller in (operator, viewer, make_client(operator)[1]):
        problem(caller.get(path), 403, "forbidden")


def test_wrong_filters_are_named(admin: Caller) -> None:
    body = problem(admin.get("/audit?action=Run!"), 422, "invalid")
    assert body["errors"][0]["field"] == "action"
    body = problem(admin.get("/audit?acton=run"), 422, "invalid")
    assert body["errors"][0]["field"] == "acton"
