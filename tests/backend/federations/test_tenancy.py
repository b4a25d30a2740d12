"""Federations of members: what others see of them, and who may do what in them."""

from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from backend.contracts.enums import Role
from backend.db.models import AuditEntry
from tests.factories import (
    Caller,
    add_user,
    make_client,
    make_federation,
    make_run,
    problem,
    signed_in,
    unchanged,
)


@dataclass
class Tenant:
    federation: dict[str, Any]
    client: dict[str, Any]
    run: dict[str, Any]

    @property
    def addresses(self) -> list[str]:
        federation, run = f"/federations/{self.federation['id']}", f"/runs/{self.run['id']}"
        return [
            *(federation + part for part in ("", "/runs", "/comparisons", "/members")),
            *(run + part for part in ("", "/live", "/metrics", "/events", "/adapters")),
            f"/clients/{self.client['id']}",
        ]


@pytest.fixture
def tenant(operator: Caller) -> Tenant:
    """A federation whose only member is `operator`."""
    client, _ = make_client(operator)
    federation = make_federation(operator, client, visibility="members")
    return Tenant(federation, client, make_run(operator, federation))


@pytest.fixture
def stranger(anonymous: Caller, session: Session) -> Caller:
    return signed_in(anonymous, session, Role.OPERATOR)


def username(caller: Caller) -> str:
    return str(caller.get("/users/me").json()["username"])


def let_in(operator: Caller, tenant: Tenant, caller: Caller, role: str) -> dict[str, Any]:
    path = f"/federations/{tenant.federation['id']}/members"
    response = operator.post(path, {"username": username(caller), "role": role})
    assert response.status_code == 201, response.text
    return dict(response.json())


def test_the_creator_is_a_member_and_administrators_see_all(
    operator: Caller, admin: Caller, tenant: Tenant
) -> None:
    [member] = operator.get(f"/federations/{tenant.federation['id']}/members").json()
    assert (member["username"], member["role"]) == (username(operator), "operator")
    for caller in (operator, admin):
        for address in tenant.addresses:
            assert caller.get(address).status_code == 200, address
        assert [item["id"] for item in caller.get("/federations").json()["items"]] == [
            tenant.federation["id"]
        ]


def test_a_federation_is_its_members_unless_asked_otherwise(operator: Caller) -> None:
    client, _ = make_client(operator)
    made = operator.post("/federations", {"name": "f", "client_ids": [client["id"]]}).json()
    assert made["visibility"] == "members"


def test_strangers_find_nothing(stranger: Caller, tenant: Tenant, engine: Engine) -> None:
    run, federation = tenant.run["id"], tenant.federation["id"]
    changes = [
        ("POST", f"/runs/{run}/start", None),
        ("POST", f"/runs/{run}/cancel", None),
        ("POST", f"/federations/{federation}/runs", {"strategy": {"name": "local_only"}}),
        ("POST", f"/federations/{federation}/members", {"username": "x"}),
        ("PATCH", f"/federations/{federation}", {"visibility": "platform"}),
        ("POST", f"/clients/{tenant.client['id']}/credential", None),
        ("DELETE", f"/clients/{tenant.client['id']}/credential", None),
    ]
    with unchanged(engine):
        for address in tenant.addresses:
            problem(stranger.get(address), 404, "not_found")
        for method, address, body in changes:
            problem(stranger.request(method, address, json=body), 404, "not_found")
        assert stranger.get("/federations").json()["items"] == []
        assert stranger.get("/clients").json()["items"] == []
        assert stranger.get("/enrolment-keys").json()["items"] == []
        body = {"name": "mine", "client_ids": [tenant.client["id"]]}
        problem(stranger.post("/federations", body), 422, "unknown_client")


def test_what_is_not_there_and_what_is_foreign_read_the_same(
    stranger: Caller, tenant: Tenant
) -> None:
    for known in tenant.addresses:
        kind, number = known.split("/")[1:3]
        unknown = str(uuid4())
        foreign = stranger.get(known).json()
        absent = stranger.get(known.replace(number, unknown)).json()
        assert foreign["detail"].replace(number, unknown) == absent["detail"], kind


def test_a_member_has_the_weaker_of_both_roles(
    operator: Caller, stranger: Caller, viewer: Caller, tenant: Tenant, engine: Engine
) -> None:
    let_in(operator, tenant, stranger, "viewer")
    let_in(operator, tenant, viewer, "operator")
    start = f"/runs/{tenant.run['id']}/start"
    with unchanged(engine):
        for caller in (stranger, viewer):
            for address in tenant.addresses:
                assert caller.get(address).status_code == 200, address
            problem(caller.post(start), 403, "forbidden")
        # to look at a client is not to own it
        body = {"name": "mine", "client_ids": [tenant.client["id"]]}
        problem(stranger.post("/federations", body), 422, "unknown_client")
    let_in(operator, tenant, stranger, "operator")
    assert stranger.post(start).status_code == 202


def test_a_removed_member_sees_nothing_at_once(
    operator: Caller, stranger: Caller, tenant: Tenant, session: Session
) -> None:
    member = let_in(operator, tenant, stranger, "viewer")
    path = f"/federations/{tenant.federation['id']}/members/{member['user_id']}"
    assert operator.delete(path).status_code == 204
    problem(stranger.get(tenant.addresses[0]), 404, "not_found")
    problem(operator.delete(path), 404, "not_found")
    actions = session.scalars(select(AuditEntry.action).order_by(AuditEntry.id)).all()
    assert actions[-2:] == ["federation.add_member", "federation.remove_member"]


def test_a_federation_is_opened_and_closed(
    operator: Caller, viewer: Caller, tenant: Tenant
) -> None:
    path = f"/federations/{tenant.federation['id']}"
    opened = operator.request("PATCH", path, json={"visibility": "platform"})
    assert opened.json()["visibility"] == "platform"
    assert viewer.get(tenant.addresses[-1]).status_code == 200
    operator.request("PATCH", path, json={"visibility": "members"})
    problem(viewer.get(path), 404, "not_found")


def test_an_unknown_user_is_named(operator: Caller, tenant: Tenant, engine: Engine) -> None:
    path = f"/federations/{tenant.federation['id']}/members"
    with unchanged(engine):
        answer = problem(operator.post(path, {"username": "nobody"}), 422, "unknown_user")
        problem(operator.post(path, {"username": "x", "role": "administrator"}), 422, "invalid")
    assert answer["errors"][0]["field"] == "username"


def test_a_reading_token_of_an_administrator_sees_all_but_changes_nothing(
    admin: Caller, tenant: Tenant, engine: Engine
) -> None:
    made = admin.post("/users/me/tokens", {"name": "reports", "scope": "read"}).json()
    reader = admin.with_token(made["token"])
    assert reader.get(tenant.addresses[0]).status_code == 200
    with unchanged(engine):
        problem(reader.post(f"/runs/{tenant.run['id']}/cancel"), 403, "forbidden")


def test_foreign_enrolment_keys_are_not_there(
    operator: Caller, stranger: Caller, admin: Caller, session: Session, engine: Engine
) -> None:
    add_user(session, Role.VIEWER)
    key = operator.post("/enrolment-keys", {"label": "mine"}).json()["key"]
    with unchanged(engine):
        problem(stranger.delete(f"/enrolment-keys/{key['id']}"), 404, "not_found")
    assert [item["id"] for item in admin.get("/enrolment-keys").json()["items"]] == [key["id"]]
    assert operator.delete(f"/enrolment-keys/{key['id']}").status_code == 204
