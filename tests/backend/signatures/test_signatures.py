"""Signed updates, checked with a key and a text of the test's own."""

import base64
import hashlib
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from sqlalchemy import select
from sqlalchemy.orm import Session

from backend.contracts.enums import EventKind, Execution
from backend.db.models import ClientUpdate, Event, Federation, Run
from tests.backend.updates.test_agent_routes import DECLARED, Remote, remote, shared
from tests.factories import (
    Caller,
    make_client,
    make_federation,
    make_key,
    make_run,
    problem,
    registration,
)

__all__ = ["remote"]  # a fixture


def key(seed: int) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(bytes([seed]) * 32)


def public(private: Ed25519PrivateKey) -> str:
    return base64.b64encode(private.public_key().public_bytes_raw()).decode()


def fingerprint(private: Ed25519PrivateKey) -> str:
    return hashlib.sha256(private.public_key().public_bytes_raw()).hexdigest()


def signed(private: Ed25519PrivateKey, text: str) -> str:
    return base64.b64encode(private.sign(text.encode())).decode()


def put_key(caller: Caller, private: Ed25519PrivateKey, by: Ed25519PrivateKey | None = None) -> Any:
    body: dict[str, Any] = {"public_key": public(private)}
    if by is not None:
        me = caller.get("/clients/me").json()["id"]
        text = f"fedbraid key v1\nclient {me}\nnext {fingerprint(private)}"
        body["signature"] = signed(by, text)
    return caller.put("/clients/me/signing-key", json=body)


def text_of(remote: Remote, sha256: str, /, **changes: object) -> str:
    values = {
        "run": remote.rows.run_id,
        "client": remote.client_id,
        "round": 1,
        "attempt": 1,
        "sha256": sha256,
        **changes,
    }
    lines = [f"{name} {value}" for name, value in values.items()]
    return "\n".join(["fedbraid update v1", *lines])


def hand_in(remote: Remote, sha256: str, signature: str | None) -> Any:
    body = {"fence": 1, "shared_sha256": sha256, "signature": signature}
    return remote.caller.post(f"{remote.path}/result", body)


def uploaded(remote: Remote) -> str:
    remote.lease()
    return str(remote.upload(shared(remote.client_id)).json()["sha256"])


def test_a_signed_update_counts_and_anybody_can_verify_it(
    remote: Remote, admin: Caller, session: Session
) -> None:
    assert put_key(remote.caller, key(1)).json()["fingerprint"] == fingerprint(key(1))
    sha256 = uploaded(remote)
    signature = signed(key(1), text_of(remote, sha256))
    answer = hand_in(remote, sha256, signature)
    assert answer.status_code == 200, answer.text
    (proof,) = admin.get(f"/runs/{remote.rows.run_id}/signatures").json()
    verifier = Ed25519PublicKey.from_public_bytes(base64.b64decode(proof["public_key"]))
    verifier.verify(base64.b64decode(proof["signature"]), text_of(remote, sha256).encode())
    assert proof["signed_text"] == text_of(remote, sha256)
    assert (proof["sha256"], proof["fingerprint"]) == (sha256, fingerprint(key(1)))
    row = session.get_one(ClientUpdate, remote.rows.update_ids[0])
    assert (row.signature, row.key_fingerprint) == (signature, fingerprint(key(1)))
    live = admin.get(f"/runs/{remote.rows.run_id}/live").json()
    shown = {u["client_id"]: u["key_fingerprint"] for u in live["rounds"][0]["client_updates"]}
    assert shown[str(remote.client_id)] == fingerprint(key(1))


@pytest.mark.parametrize(
    "change",
    [
        {"run": "0" * 32},
        {"client": "0" * 32},
        {"round": 2},
        {"attempt": 2},
        {"sha256": "0" * 64},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_signature_of_anything_else_is_refused(
    remote: Remote, session: Session, change: dict[str, object]
) -> None:
    put_key(remote.caller, key(1))
    sha256 = uploaded(remote)
    wrong = signed(key(1), text_of(remote, sha256, **change))
    problem(hand_in(remote, sha256, wrong), 422, "signature_invalid")
    (event,) = session.scalars(select(Event).where(Event.kind == EventKind.UPDATE_REFUSED))
    assert event.data["code"] == "signature_invalid"
    right = signed(key(1), text_of(remote, sha256))
    assert hand_in(remote, sha256, right).status_code == 200  # the attempt still holds


def test_another_key_and_no_key_are_refused(remote: Remote) -> None:
    sha256 = uploaded(remote)
    signature = signed(key(1), text_of(remote, sha256))
    problem(hand_in(remote, sha256, signature), 422, "signature_invalid")  # none is registered
    put_key(remote.caller, key(2))
    problem(hand_in(remote, sha256, signature), 422, "signature_invalid")


def test_a_client_with_a_key_cannot_leave_the_signature_out(remote: Remote) -> None:
    put_key(remote.caller, key(1))
    problem(hand_in(remote, uploaded(remote), None), 422, "signature_missing")


def test_a_federation_may_demand_signatures(
    remote: Remote, operator: Caller, session: Session
) -> None:
    federation_id = session.get_one(Run, remote.rows.run_id).federation_id
    sha256 = uploaded(remote)
    session.get_one(Federation, federation_id).require_signatures = True
    session.commit()
    problem(hand_in(remote, sha256, None), 422, "signature_missing")


def test_a_run_that_needs_signatures_starts_when_all_can_sign(operator: Caller) -> None:
    managed, _ = make_client(operator)
    client, itself = make_client(operator, **DECLARED)
    federation = make_federation(operator, managed, client, require_signatures=True)
    assert federation["require_signatures"] is True
    run = make_run(operator, federation)
    refused = problem(operator.post(f"/runs/{run['id']}/start"), 409, "signing_key_missing")
    assert client["name"] in refused["detail"]
    assert managed["name"] not in refused["detail"]
    put_key(itself, key(1))
    assert operator.post(f"/runs/{run['id']}/start").status_code == 202


def test_the_demand_is_changed_without_touching_who_sees_the_federation(operator: Caller) -> None:
    client, _ = make_client(operator)
    federation = make_federation(operator, client)
    path = f"/federations/{federation['id']}"
    changed = operator.request("PATCH", path, json={"require_signatures": True}).json()
    assert (changed["require_signatures"], changed["visibility"]) == (True, "platform")
    changed = operator.request("PATCH", path, json={"visibility": "members"}).json()
    assert (changed["require_signatures"], changed["visibility"]) == (True, "members")


def test_a_new_key_is_signed_by_the_one_before(operator: Caller) -> None:
    client, itself = make_client(operator, **DECLARED)
    put_key(itself, key(1))
    problem(put_key(itself, key(2)), 403, "rotation_not_signed")
    problem(put_key(itself, key(2), by=key(2)), 403, "rotation_not_signed")
    assert put_key(itself, key(2), by=key(1)).status_code == 200
    assert put_key(itself, key(2)).status_code == 200  # the same again
    problem(put_key(itself, key(1), by=key(2)), 409, "key_retired")
    keys = itself.get(f"/clients/{client['id']}/signing-keys").json()["items"]
    assert [(one["fingerprint"], one["retired_at"] is None) for one in keys] == [
        (fingerprint(key(2)), True),
        (fingerprint(key(1)), False),
    ]


def test_an_operator_retires_a_lost_key(operator: Caller) -> None:
    client, itself = make_client(operator, **DECLARED)
    put_key(itself, key(1))
    assert operator.delete(f"/clients/{client['id']}/signing-key").status_code == 204
    problem(operator.delete(f"/clients/{client['id']}/signing-key"), 404, "not_found")
    assert put_key(itself, key(2)).status_code == 200


def test_a_client_may_register_with_a_key(operator: Caller) -> None:
    client, itself = make_client(operator, **DECLARED, public_key=public(key(3)))
    keys = itself.get(f"/clients/{client['id']}/signing-keys").json()["items"]
    assert [one["fingerprint"] for one in keys] == [fingerprint(key(3))]


def test_managed_clients_have_nothing_to_sign(operator: Caller) -> None:
    body = registration(make_key(operator)["secret"], public_key=public(key(1)))
    problem(operator.post("/clients/register", body), 422, "invalid")
    _, managed = make_client(operator, execution=Execution.MANAGED.value)
    problem(put_key(managed, key(1)), 403, "client_is_managed")


@pytest.mark.parametrize("text", ["", "A" * 44, "A" * 42 + "B=", "A" * 43 + "=A", "é" * 43 + "="])
def test_what_is_no_key_is_refused(operator: Caller, text: str) -> None:
    _, itself = make_client(operator, **DECLARED)
    answer = itself.put("/clients/me/signing-key", json={"public_key": text})
    problem(answer, 422, "invalid")
