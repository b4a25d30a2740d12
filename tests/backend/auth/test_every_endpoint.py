"""Every endpoint of the API, called by everybody: who gets in, who does not, and with which answer.

An endpoint that is missing in the table fails the first test: whoever adds one says who may.
"""

from enum import Enum
from typing import Any

import pytest
from fastapi import FastAPI
from sqlalchemy.orm import Session

from backend.db.ids import new_id
from backend.storage import BlobStore
from tests.backend.world import World, make_world
from tests.factories import Caller

PASS, ASK, REFUSE, HIDE = "in", "401", "403", "404"
CALLERS = (
    "anonymous",
    *("viewer", "operator", "administrator", "client"),
    *("foreign viewer", "foreign operator", "foreign client"),
)


class Access(Enum):
    """What each caller gets, in the order of `CALLERS`."""

    OPEN = (PASS,) * 8
    ANYBODY_KNOWN = (ASK, *(PASS,) * 7)
    USER = (ASK, PASS, PASS, PASS, REFUSE, PASS, PASS, REFUSE)
    OPERATOR = (ASK, REFUSE, PASS, PASS, REFUSE, REFUSE, PASS, REFUSE)
    ADMINISTRATOR = (ASK, REFUSE, REFUSE, PASS, REFUSE, REFUSE, REFUSE, REFUSE)
    CLIENT = (ASK, REFUSE, REFUSE, REFUSE, PASS, REFUSE, REFUSE, PASS)
    OWN_UPDATE = (ASK, REFUSE, REFUSE, REFUSE, PASS, REFUSE, REFUSE, HIDE)
    READ = (ASK, PASS, PASS, PASS, REFUSE, HIDE, HIDE, REFUSE)
    CHANGE = (ASK, REFUSE, PASS, PASS, REFUSE, REFUSE, HIDE, REFUSE)
    ADMINISTER = (ASK, REFUSE, REFUSE, PASS, REFUSE, REFUSE, HIDE, REFUSE)
    EXPORT = (ASK, REFUSE, REFUSE, PASS, REFUSE, HIDE, HIDE, REFUSE)
    READ_OR_ITSELF = (ASK, PASS, PASS, PASS, PASS, HIDE, HIDE, REFUSE)
    CHANGE_OR_ITSELF = (ASK, REFUSE, PASS, PASS, PASS, REFUSE, HIDE, REFUSE)


TABLE = {
    "GET /healthz": Access.OPEN,
    "GET /readyz": Access.OPEN,
    "GET /metrics": Access.OPEN,
    "POST /api/v1/sessions": Access.OPEN,
    "GET /api/v1/sessions": Access.USER,
    "DELETE /api/v1/sessions/current": Access.USER,
    "DELETE /api/v1/sessions/{session_id}": Access.USER,
    "GET /api/v1/oidc": Access.OPEN,
    "GET /api/v1/oidc/sign-in": Access.OPEN,
    "GET /api/v1/oidc/callback": Access.OPEN,
    "POST /api/v1/oidc/session": Access.OPEN,
    "GET /api/v1/users/me": Access.USER,
    "POST /api/v1/users/me/password": Access.USER,
    "GET /api/v1/users/me/tokens": Access.USER,
    "POST /api/v1/users/me/tokens": Access.USER,
    "DELETE /api/v1/users/me/tokens/{token_id}": Access.USER,
    "POST /api/v1/users/me/second-factor": Access.USER,
    "POST /api/v1/users/me/second-factor/confirmation": Access.USER,
    "POST /api/v1/users/me/second-factor/removal": Access.USER,
    "POST /api/v1/users": Access.ADMINISTRATOR,
    "GET /api/v1/users": Access.ADMINISTRATOR,
    "PATCH /api/v1/users/{user_id}": Access.ADMINISTRATOR,
    "GET /api/v1/audit": Access.ADMINISTRATOR,
    "GET /api/v1/audit/export.csv": Access.ADMINISTRATOR,
    "GET /api/v1/base-models": Access.ANYBODY_KNOWN,
    "GET /api/v1/strategies": Access.ANYBODY_KNOWN,
    "GET /api/v1/builtin-tasks": Access.ANYBODY_KNOWN,
    "GET /api/v1/metrics": Access.ANYBODY_KNOWN,
    "POST /api/v1/clients/register": Access.OPEN,
    "POST /api/v1/enrolment-keys": Access.OPERATOR,
    "GET /api/v1/enrolment-keys": Access.OPERATOR,
    "DELETE /api/v1/enrolment-keys/{key_id}": Access.CHANGE,
    "GET /api/v1/clients": Access.USER,
    "GET /api/v1/clients/me": Access.CLIENT,
    "POST /api/v1/clients/me/heartbeat": Access.CLIENT,
    "GET /api/v1/clients/{client_id}": Access.READ_OR_ITSELF,
    "POST /api/v1/clients/{client_id}/approval": Access.CHANGE,
    "POST /api/v1/clients/{client_id}/credential": Access.CHANGE,
    "DELETE /api/v1/clients/{client_id}/credential": Access.CHANGE,
    "PUT /api/v1/clients/{client_id}/dataset": Access.CHANGE_OR_ITSELF,
    "POST /api/v1/clients/{client_id}/refusals": Access.CHANGE_OR_ITSELF,
    "GET /api/v1/clients/{client_id}/refusals": Access.READ_OR_ITSELF,
    "DELETE /api/v1/clients/{client_id}/refusals/{refusal_id}": Access.CHANGE_OR_ITSELF,
    "GET /api/v1/runs/{run_id}/refusals": Access.READ,
    "PUT /api/v1/clients/me/signing-key": Access.CLIENT,
    "DELETE /api/v1/clients/{client_id}/signing-key": Access.CHANGE,
    "GET /api/v1/clients/{client_id}/signing-keys": Access.READ_OR_ITSELF,
    "GET /api/v1/runs/{run_id}/signatures": Access.READ,
    "GET /api/v1/clients/{client_id}/usage": Access.READ_OR_ITSELF,
    "GET /api/v1/federations/{federation_id}/usage": Access.READ,
    "POST /api/v1/federations": Access.OPERATOR,
    "GET /api/v1/federations": Access.USER,
    "GET /api/v1/federations/{federation_id}": Access.READ,
    "PATCH /api/v1/federations/{federation_id}": Access.CHANGE,
    "GET /api/v1/federations/{federation_id}/archive": Access.EXPORT,
    "POST /api/v1/federations/import": Access.ADMINISTRATOR,
    "GET /api/v1/federations/{federation_id}/storage": Access.READ,
    "PATCH /api/v1/federations/{federation_id}/storage": Access.ADMINISTER,
    "GET /api/v1/federations/{federation_id}/probe-set": Access.READ,
    "PUT /api/v1/federations/{federation_id}/probe-set": Access.CHANGE,
    "DELETE /api/v1/federations/{federation_id}/probe-set": Access.CHANGE,
    "GET /api/v1/federations/{federation_id}/probe-set/content": Access.READ,
    "GET /api/v1/federations/{federation_id}/members": Access.READ,
    "POST /api/v1/federations/{federation_id}/members": Access.CHANGE,
    "DELETE /api/v1/federations/{federation_id}/members/{user_id}": Access.CHANGE,
    "POST /api/v1/federations/{federation_id}/runs": Access.CHANGE,
    "GET /api/v1/federations/{federation_id}/runs": Access.READ,
    "GET /api/v1/runs/{run_id}": Access.READ,
    "POST /api/v1/runs/{run_id}/start": Access.CHANGE,
    "POST /api/v1/runs/{run_id}/cancel": Access.CHANGE,
    "POST /api/v1/runs/{run_id}/pause": Access.CHANGE,
    "POST /api/v1/runs/{run_id}/resume": Access.CHANGE,
    "POST /api/v1/runs/{run_id}/clone": Access.CHANGE,
    "GET /api/v1/runs/{run_id}/live": Access.READ,
    "GET /api/v1/runs/{run_id}/metrics": Access.READ,
    "GET /api/v1/runs/{run_id}/events": Access.READ,
    "GET /api/v1/runs/{run_id}/adapters": Access.READ,
    "GET /api/v1/runs/{run_id}/clients/{client_id}/adapter": Access.READ_OR_ITSELF,
    "POST /api/v1/federations/{federation_id}/comparisons": Access.CHANGE,
    "GET /api/v1/federations/{federation_id}/comparisons": Access.READ,
    "GET /api/v1/comparisons/{comparison_id}": Access.READ,
    "POST /api/v1/comparisons/{comparison_id}/start": Access.CHANGE,
    "POST /api/v1/comparisons/{comparison_id}/cancel": Access.CHANGE,
    "GET /api/v1/comparisons/{comparison_id}/runs": Access.READ,
    "GET /api/v1/comparisons/{comparison_id}/events": Access.READ,
    "GET /api/v1/comparisons/{comparison_id}/results": Access.READ,
    "GET /api/v1/comparisons/{comparison_id}/results.csv": Access.READ,
    "GET /api/v1/comparisons/{comparison_id}/results.md": Access.READ,
    "POST /api/v1/agent/lease": Access.CLIENT,
    "GET /api/v1/agent/updates/{update_id}/plan": Access.OWN_UPDATE,
    "POST /api/v1/agent/updates/{update_id}/heartbeat": Access.OWN_UPDATE,
    "PUT /api/v1/agent/updates/{update_id}/shared": Access.OWN_UPDATE,
    "POST /api/v1/agent/updates/{update_id}/uploads": Access.OWN_UPDATE,
    "PATCH /api/v1/agent/updates/{update_id}/uploads/content": Access.OWN_UPDATE,
    "POST /api/v1/agent/updates/{update_id}/uploads/complete": Access.OWN_UPDATE,
    "POST /api/v1/agent/updates/{update_id}/result": Access.OWN_UPDATE,
    "POST /api/v1/agent/updates/{update_id}/failure": Access.OWN_UPDATE,
    "POST /api/v1/agent/updates/{update_id}/release": Access.OWN_UPDATE,
    "GET /api/v1/agent/updates/{update_id}/secure": Access.OWN_UPDATE,
    "POST /api/v1/agent/updates/{update_id}/secure/keys": Access.OWN_UPDATE,
    "POST /api/v1/agent/updates/{update_id}/secure/shares": Access.OWN_UPDATE,
    "POST /api/v1/agent/updates/{update_id}/secure/reveal": Access.OWN_UPDATE,
}

KEY = "A" * 43 + "="  # 32 zero bytes

# What an address needs to reach the check of whose it is; other bodies are left out, since a
# caller who gets in is then told what is wrong with the request, and nothing changes.
REQUESTS: dict[str, dict[str, Any]] = {
    "POST /api/v1/agent/updates/{update_id}/heartbeat": {
        "json": {"fence": 9, "stage": "training", "step": 0, "num_steps": 1}
    },
    "PUT /api/v1/agent/updates/{update_id}/shared": {
        "params": {"fence": 9},
        "headers": {"Content-Type": "application/vnd.safetensors"},
    },
    "POST /api/v1/agent/updates/{update_id}/uploads": {
        "json": {"fence": 9, "sha256": "0" * 64, "size_bytes": 9}
    },
    "PATCH /api/v1/agent/updates/{update_id}/uploads/content": {
        "params": {"fence": 9, "sha256": "0" * 64},
        "headers": {"Content-Type": "application/offset+octet-stream", "Upload-Offset": "0"},
    },
    "POST /api/v1/agent/updates/{update_id}/uploads/complete": {
        "params": {"fence": 9, "sha256": "0" * 64}
    },
    "POST /api/v1/clients/{client_id}/refusals": {"json": {"run_id": "0" * 32, "reason": "test"}},
    "POST /api/v1/agent/updates/{update_id}/result": {"json": {"fence": 9}},
    "POST /api/v1/agent/updates/{update_id}/failure": {"json": {"fence": 9, "reason": "test"}},
    "POST /api/v1/agent/updates/{update_id}/release": {"json": {"fence": 9}},
    "POST /api/v1/agent/updates/{update_id}/secure/keys": {
        "json": {"fence": 9, "session": 1, "cipher_key": KEY, "mask_key": KEY}
    },
    "POST /api/v1/agent/updates/{update_id}/secure/shares": {
        "json": {"fence": 9, "session": 1, "ciphertexts": {}}
    },
    "POST /api/v1/agent/updates/{update_id}/secure/reveal": {
        "json": {"session": 1, "own_seeds": {}, "mask_keys": {}}
    },
}


def endpoints(app: object) -> set[str]:
    assert isinstance(app, FastAPI)
    return {
        f"{method.upper()} {path}"
        for path, operations in app.openapi()["paths"].items()
        for method in operations
    }


def test_the_table_has_every_endpoint(anonymous: Caller) -> None:
    assert endpoints(anonymous.http.app) == set(TABLE)


@pytest.fixture
def world(session: Session, anonymous: Caller, blob_store: BlobStore) -> World:
    return make_world(session, blob_store)


def outcome(response: Any, world: World) -> str:
    """What became of a call: in, 401, 403, or 404 as if there were nothing."""
    assert response.status_code < 500, response.text
    if response.status_code in {401, 403}:
        return str(response.status_code)
    if response.status_code == 404:
        detail = response.json()["detail"]
        named = any(str(number) in detail for number in world.ids.values())
        is_hidden = detail.startswith("There is no") or "has no client update" in detail
        if named and is_hidden:
            return HIDE
    return PASS


def test_everybody_gets_what_the_table_says(anonymous: Caller, world: World) -> None:
    wrong = []
    for endpoint, access in TABLE.items():
        method, template = endpoint.split(" ")
        path = template
        for name, number in world.ids.items():
            path = path.replace(f"{{{name}}}", str(number))
        for name in ("user_id", "session_id", "token_id", "refusal_id"):
            path = path.replace(f"{{{name}}}", str(new_id()))
        for name, expected in zip(CALLERS, access.value, strict=True):
            caller = world.caller(anonymous, name)
            request = REQUESTS.get(endpoint, {})
            headers = dict(request.get("headers", {}))
            if caller.token:
                headers["Authorization"] = f"Bearer {caller.token}"
            response = anonymous.http.request(method, path, **request | {"headers": headers})
            found = outcome(response, world)
            if found != expected:
                wrong.append(
                    f"{endpoint} as {name}: {found}, not {expected}: {response.text[:120]}"
                )
    assert not wrong, "\n".join(wrong)
