"""A federation's own probe texts over the API, and that runs keep those they were made with."""

import hashlib
import io
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import Engine, func, select, update
from sqlalchemy.orm import Session

from backend.api_client.client import ApiClient
from backend.api_client.errors import ApiError
from backend.contracts.enums import Role
from backend.contracts.params.lora import LocalOnlyParams
from backend.contracts.probe_sets import (
    MAX_BODY_BYTES,
    NUM_BUILT_IN,
    PLAIN_TEXT,
    ProbeSource,
    encode_probe_set,
)
from backend.contracts.runs import RunCreate
from backend.db.models import AuditEntry, Blob, Federation
from backend.db.session import SessionFactory
from backend.settings import Settings
from backend.storage import BlobStore
from backend.storage.garbage import collect_garbage
from tests.backend.comparisons.comparing import make_comparison
from tests.factories import (
    NDJSON,
    Caller,
    make_client,
    make_federation,
    make_run,
    problem,
    signed_in,
    unchanged,
)
from tests.serving import serve_api

TEXTS = [f"Sentence number {number}, and nothing secret." for number in range(60)]
STORED = encode_probe_set(TEXTS)
SHA256 = hashlib.sha256(STORED).hexdigest()
PLAIN = {"Content-Type": "text/plain; charset=utf-8"}


@pytest.fixture
def federation(operator: Caller) -> dict[str, Any]:
    client, _ = make_client(operator)
    return make_federation(operator, client, visibility="members")


@pytest.fixture
def path(federation: dict[str, Any]) -> str:
    return f"/federations/{federation['id']}/probe-set"


def upload(operator: Caller, path: str, content: bytes = STORED) -> dict[str, Any]:
    response = operator.put(path, content=content, headers=NDJSON)
    assert response.status_code == 200, response.text
    return dict(response.json())


def test_a_federation_begins_with_the_built_in_texts(operator: Caller, path: str) -> None:
    found = operator.get(path).json()
    assert (found["source"], found["num_texts"]) == ("built_in", NUM_BUILT_IN)
    assert found["sha256"] is found["size_bytes"] is found["uploaded_at"] is None
    problem(operator.get(f"{path}/content"), 404, "probe_set_built_in")
    problem(operator.delete(path), 404, "probe_set_built_in")


def test_an_operator_uploads_texts_reads_them_and_goes_back(
    operator: Caller, path: str, session: Session, federation: dict[str, Any]
) -> None:
    plain = "\n".join(f" {text} " for text in TEXTS).encode()
    made = operator.put(path, content=plain, headers=PLAIN).json()
    assert made == operator.get(path).json()
    assert (made["source"], made["sha256"], made["num_texts"]) == ("uploaded", SHA256, 60)
    assert (made["size_bytes"], made["examples"]) == (len(STORED), TEXTS[:5])
    assert made["uploaded_by"] == operator.get("/users/me").json()["username"]
    assert made["uploaded_at"] is not None
    content = operator.get(f"{path}/content")
    assert content.content == STORED
    assert content.headers["etag"] == f'"{SHA256}"'
    storage = operator.get(f"/federations/{federation['id']}/storage").json()
    assert storage["used_bytes"] == len(STORED)
    assert [use["use"] for use in storage["uses"]] == ["probe_sets"]
    assert operator.delete(path).status_code == 204
    assert operator.get(path).json()["source"] == "built_in"
    query = select(AuditEntry).where(AuditEntry.action == "federation.probe_set")
    entries = session.scalars(query.order_by(AuditEntry.id)).all()
    assert [entry.data for entry in entries] == [
        {"before": None, "after": SHA256, "num_texts": 60},
        {"before": SHA256, "after": None},
    ]
    assert {entry.object_id for entry in entries} == {UUID(federation["id"])}


def test_a_wrong_file_changes_nothing(operator: Caller, path: str, engine: Engine) -> None:
    upload(operator, path)
    with unchanged(engine):
        bad = STORED + b'{"text": "Sentence number 4, and nothing secret."}\n'
        refused = problem(operator.put(path, content=bad, headers=NDJSON), 422, "probe_set_refused")
        assert refused["errors"][0] == {
            "field": "line 61",
            "value": "Sentence number 4, and nothing secret.",
            "message": refused["detail"],
        }
        few = operator.put(path, content=b"one\ntwo\n", headers=PLAIN)
        assert problem(few, 422, "probe_set_refused")["errors"][0]["field"] == "body"
        pdf = {"Content-Type": "application/pdf"}
        other = problem(
            operator.put(path, content=b"%PDF", headers=pdf), 415, "unsupported_media_type"
        )
        assert "as text/plain" in other["detail"]
        large = operator.put(path, content=b"x" * (MAX_BODY_BYTES + 1), headers=PLAIN)
        problem(large, 413, "too_large")


def test_what_others_may(
    operator: Caller,
    viewer: Caller,
    anonymous: Caller,
    session: Session,
    path: str,
    federation: dict[str, Any],
    engine: Engine,
) -> None:
    upload(operator, path)
    stranger = signed_in(anonymous, session, Role.OPERATOR)
    member = {"username": viewer.get("/users/me").json()["username"], "role": "viewer"}
    assert operator.post(f"/federations/{federation['id']}/members", member).status_code == 201
    with unchanged(engine):
        for address in (path, f"{path}/content"):
            assert viewer.get(address).status_code == 200
            problem(stranger.get(address), 404, "not_found")
        problem(viewer.put(path, content=STORED, headers=NDJSON), 403, "forbidden")
        problem(viewer.delete(path), 403, "forbidden")
        problem(stranger.put(path, content=STORED, headers=NDJSON), 404, "not_found")
        problem(stranger.delete(path), 404, "not_found")


def test_a_member_who_looks_only_changes_nothing(
    operator: Caller, anonymous: Caller, session: Session, path: str, federation: dict[str, Any]
) -> None:
    other = signed_in(anonymous, session, Role.OPERATOR)
    member = {"username": other.get("/users/me").json()["username"], "role": "viewer"}
    operator.post(f"/federations/{federation['id']}/members", member)
    refused = problem(other.put(path, content=STORED, headers=NDJSON), 403, "forbidden")
    assert "that of a viewer" in refused["detail"]
    problem(other.delete(path), 403, "forbidden")


def test_a_full_federation_takes_no_texts(
    operator: Caller, path: str, session: Session, federation: dict[str, Any]
) -> None:
    row = session.get_one(Federation, UUID(federation["id"]))
    row.quota_bytes = len(STORED) - 1
    session.commit()
    refused = operator.put(path, content=STORED, headers=NDJSON)
    assert (
        f"{len(STORED):,} bytes more do not fit"
        in problem(refused, 507, "quota_exceeded")["detail"]
    )
    assert session.scalar(select(func.count()).select_from(Blob)) == 0
    row.quota_bytes = len(STORED)
    session.commit()
    upload(operator, path)


def test_every_run_pins_the_texts_that_its_federation_had(
    operator: Caller, path: str, federation: dict[str, Any]
) -> None:
    old = make_run(operator, federation)
    assert old["probe_set_sha256"] is None
    upload(operator, path)
    made = make_run(operator, federation)
    clone = operator.post(f"/runs/{old['id']}/clone", {}).json()
    comparison = make_comparison(operator, federation)
    compared = operator.get(f"/comparisons/{comparison['id']}/runs").json()["items"]
    assert compared
    operator.delete(path)
    for run in (made, clone, *compared):
        now = operator.get(f"/runs/{run['id']}").json()["probe_set_sha256"]
        assert run["probe_set_sha256"] == now == SHA256
    assert operator.get(f"/runs/{old['id']}").json()["probe_set_sha256"] is None
    assert make_run(operator, federation)["probe_set_sha256"] is None


def test_texts_stay_while_the_federation_or_a_run_needs_them(
    operator: Caller,
    path: str,
    federation: dict[str, Any],
    session: Session,
    session_factory: SessionFactory,
    blob_store: BlobStore,
) -> None:
    upload(operator, path)
    make_run(operator, federation)
    used_by_run = SHA256
    unused = upload(operator, path, encode_probe_set(TEXTS[1:]))["sha256"]
    current = upload(operator, path, encode_probe_set(TEXTS[2:]))["sha256"]
    session.execute(update(Blob).values(last_stored_at=func.now() - timedelta(days=2)))
    session.commit()
    assert collect_garbage(session_factory, blob_store, timedelta(days=1)).num_blobs == 1
    kept = {sha256: blob_store.exists(sha256) for sha256 in (used_by_run, unused, current)}
    assert kept == {used_by_run: True, unused: False, current: True}
    storage = operator.get(f"/federations/{federation['id']}/storage").json()
    assert storage["used_bytes"] == len(STORED) + len(encode_probe_set(TEXTS[2:]))


def test_the_sdk_over_http(
    operator: Caller, federation: dict[str, Any], settings: Settings
) -> None:
    federation_id = UUID(federation["id"])
    with serve_api(settings) as port, ApiClient(f"http://127.0.0.1:{port}", operator.token) as api:
        made = api.federations.upload_probe_set(federation_id, io.BytesIO(STORED))
        assert made == api.federations.probe_set(federation_id)
        assert (made.sha256, made.examples) == (SHA256, TEXTS[:5])
        assert api.federations.download_probe_set(federation_id) == STORED
        lines = "\n".join(TEXTS[:55]).encode()
        shorter = api.federations.upload_probe_set(federation_id, lines, PLAIN_TEXT)
        assert shorter.num_texts == 55
        run = api.federations.create_run(federation_id, RunCreate(strategy=LocalOnlyParams()))
        assert run.probe_set_sha256 == shorter.sha256
        api.federations.remove_probe_set(federation_id)
        assert api.federations.probe_set(federation_id).source is ProbeSource.BUILT_IN
        with pytest.raises(ApiError, match="uses the built-in probe texts"):
            api.federations.download_probe_set(federation_id)


def test_runs_that_need_more_codes_than_there_can_be_are_not_made(
    operator: Caller, engine: Engine
) -> None:
    client, _ = make_client(operator, task="choice", lora_rank=4, dataset=None)
    federation = make_federation(operator, client, global_rank=len(TEXTS))
    place = f"/federations/{federation['id']}"
    strategy = {"name": "h2tune", "codes": "exchange"}
    source = make_run(operator, federation, strategy=strategy)  # with the built-in texts
    upload(operator, f"{place}/probe-set")
    run = {"strategy": strategy, "num_rounds": 1}
    arms = [{"strategy": {"name": "local_only"}}, {"strategy": strategy}]
    comparison = {"name": "Too few", "arms": arms, "seeds": [0], "num_rounds": 1}
    with unchanged(engine):
        answer = problem(operator.post(f"{place}/runs", run), 422, "codes_too_few")
        copy = operator.post(f"/runs/{source['id']}/clone", {})
        compared = operator.post(f"{place}/comparisons", comparison)
    assert answer["errors"][0]["field"] == "strategy.gauge"
    assert "it is 60, and the federation has 60 texts" in answer["detail"]
    problem(copy, 422, "codes_too_few")
    refused = problem(compared, 422, "codes_too_few")
    assert "arms.1.strategy.gauge" in {error["field"] for error in refused["errors"]}
    make_run(operator, federation, strategy=strategy | {"gauge": "none"})
