"""Uploading a data set: what is refused, and that nothing changes then."""

import json
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from backend.db.models import Blob
from backend.settings import Settings
from backend.storage import BlobStore
from tests.factories import (
    NDJSON,
    ROWS,
    Caller,
    make_client,
    make_federation,
    make_run,
    problem,
    unchanged,
)


def row(split: str, question: str = "What is 1 + 1?", answer: str = "2", **more: Any) -> bytes:
    fields = {"question": question, "answer": answer, "split": split, **more}
    return json.dumps(fields).encode() + b"\n"


def upload(caller: Caller, client: dict[str, Any], content: Any, **headers: str) -> Any:
    return caller.put(
        f"/clients/{client['id']}/dataset", content=content, headers={**NDJSON, **headers}
    )


@pytest.mark.parametrize("media_type", ["application/x-ndjson", "application/jsonl; charset=utf-8"])
def test_good_rows_become_the_clients_data(
    operator: Caller, session: Session, blob_store: BlobStore, media_type: str
) -> None:
    client, as_client = make_client(operator, dataset=None)
    assert client["dataset"] is None
    response = upload(as_client, client, ROWS, **{"Content-Type": media_type})
    assert response.status_code == 200, response.text
    dataset = response.json()["dataset"]
    counts = (dataset["num_train"], dataset["num_validation"], dataset["num_test"])
    assert counts == (1, 1, 1)
    assert blob_store.read(dataset["sha256"]) == ROWS
    assert session.get_one(Blob, dataset["sha256"]).size_bytes == len(ROWS)
    assert operator.get(f"/clients/{client['id']}").json()["dataset"] == dataset


def test_a_second_upload_replaces_the_first(operator: Caller) -> None:
    client, _ = make_client(operator)
    first = upload(operator, client, ROWS).json()["dataset"]
    more = ROWS + row("train", "What is 9 + 9?", "18")
    second = upload(operator, client, more).json()["dataset"]
    assert (first["num_train"], second["num_train"]) == (1, 2)


@pytest.mark.parametrize(
    ("content", "field", "words"),
    [
        (row("train") + b'{"question": "x"}', "line 2.split", "field `split` is missing"),
        (
            row("train") + b'{"question": "x", "split": "test"}',
            "line 2.answer",
            "Line 2: field `answer` is missing or empty. Every row needs it.",
        ),
        (row("train") + b"\n" + b"{not json}", "line 3.body", "Line 3: not valid JSON"),
        (row("train") + b"[1]", "line 2.body", "a JSON list where an object"),
        (row("train") + b'{"question": 1' + b"0" * 5000 + b"}", "line 2.body", "Line 2"),
        (row("train"), "split", "no row of 1 has split 'test'"),
        (row("test"), "split", "no row of 1 has split 'train'"),
        (b"", "body", "no rows"),
        (row("train") + row("test"), "line 2.split", "is in split 'test' here and in 'train'"),
        (row("train") + row("test", "x", "none"), "line 2.answer", "'none', which holds no number"),
        (row("train") + row("dev", "x"), "line 2.split", "'dev'"),
        (b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR", "line 1.body", "not UTF-8"),
        (b"PK\x03\x04\x14\x00\x00\x00\x08\x00", "line 1.body", "not valid JSON"),
        (
            b'{"question": "\\ud800", "answer": "1"}\n{"question": "y", "answer": "1"}',
            "line 1.question",
            "Line 1",
        ),
    ],
    ids=[
        "split missing",
        "field missing",
        "bad JSON",
        "no object",
        "huge number",
        "no test rows",
        "no train rows",
        "empty",
        "leak",
        "no number",
        "unknown split",
        "picture",
        "zip",
        "half a surrogate pair",
    ],
)
def test_wrong_rows_are_named(
    operator: Caller, engine: Engine, content: bytes, field: str, words: str
) -> None:
    client, _ = make_client(operator)
    with unchanged(engine):
        response = upload(operator, client, content)
    body = problem(response, 422, "dataset_refused")
    assert body["errors"][0]["field"] == field
    assert words in body["detail"]


@pytest.mark.parametrize("media_type", ["application/json", "text/csv", "", "x" * 300])
def test_other_media_types_are_refused(operator: Caller, engine: Engine, media_type: str) -> None:
    client, _ = make_client(operator)
    with unchanged(engine):
        response = upload(operator, client, ROWS, **{"Content-Type": media_type})
    body = problem(response, 415, "unsupported_media_type")
    assert "application/x-ndjson or application/jsonl" in body["detail"]


class Source:
    """Gives chunks without a known length, and counts what was taken."""

    def __init__(self, num_chunks: int) -> None:
        self.num_chunks = num_chunks
        self.taken = 0

    def __iter__(self) -> Iterator[bytes]:
        for _ in range(self.num_chunks):
            self.taken += 1
            yield b"x" * 1000


def test_too_large_by_its_header(
    operator: Caller, engine: Engine, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, _ = make_client(operator)
    monkeypatch.setattr(settings, "max_dataset_bytes", len(ROWS))
    assert upload(operator, client, ROWS).status_code == 200
    with unchanged(engine):
        response = upload(operator, client, ROWS + b" ")
    body = problem(response, 413, "too_large")
    assert f"{len(ROWS) + 1} bytes, the limit is {len(ROWS)} bytes" in body["detail"]
    assert "FEDBRAID_MAX_DATASET_BYTES" in body["detail"]


def test_too_large_without_a_length(
    operator: Caller, engine: Engine, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, _ = make_client(operator)
    monkeypatch.setattr(settings, "max_dataset_bytes", 5000)
    with unchanged(engine):
        response = upload(operator, client, iter(Source(10)))
    assert "content-length" not in response.request.headers
    problem(response, 413, "too_large")


def test_others_may_not_upload(
    operator: Caller, viewer: Caller, anonymous: Caller, engine: Engine
) -> None:
    client, _ = make_client(operator)
    _, other = make_client(operator)
    with unchanged(engine):
        problem(upload(viewer, client, ROWS), 403, "forbidden")
        problem(upload(other, client, ROWS), 403, "forbidden")
        problem(upload(anonymous, client, ROWS), 401, "unauthenticated")
        problem(upload(operator, {"id": uuid4()}, ROWS), 404, "not_found")


def test_data_of_a_run_that_goes_on_stay(operator: Caller, engine: Engine, broker: object) -> None:
    client, as_client = make_client(operator)
    run = make_run(operator, make_federation(operator, client))
    assert operator.post(f"/runs/{run['id']}/start").status_code == 202
    before = operator.get(f"/clients/{client['id']}").json()["dataset"]
    body = problem(upload(as_client, client, ROWS), 409, "dataset_in_use")
    assert run["id"] in body["detail"]
    assert operator.get(f"/clients/{client['id']}").json()["dataset"] == before
    operator.post(f"/runs/{run['id']}/cancel")
    assert upload(as_client, client, ROWS).status_code == 200


def test_a_refused_upload_stores_no_blob(operator: Caller, session: Session) -> None:
    client, _ = make_client(operator)
    upload(operator, client, b"{}")
    assert session.scalars(select(Blob)).all() == []
