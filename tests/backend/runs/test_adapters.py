"""Adapters: listing, and who may download which."""

from pathlib import Path
from urllib.parse import unquote, urlparse

import pytest
from sqlalchemy.orm import Session

from backend.auth.service import issue_credential
from backend.db.models import Client, ClientUpdate
from backend.settings import Settings
from backend.storage import BlobRef, BlobStore, BlobStoreUnavailableError, save_blob
from tests.backend.rows import OpenRun, add_open_run
from tests.factories import Caller, problem

ZIP = b"PK\x03\x04" + bytes(range(256)) * 5000


@pytest.fixture
def ref(session: Session, blob_store: BlobStore) -> BlobRef:
    return save_blob(session, blob_store, ZIP, "application/zip")


@pytest.fixture
def rows(session: Session, ref: BlobRef) -> OpenRun:
    """A run whose first client has its adapter."""
    rows = add_open_run(session)
    session.get_one(ClientUpdate, rows.update_ids[0]).adapter_sha256 = ref.sha256
    session.commit()
    return rows


def as_client(caller: Caller, session: Session, rows: OpenRun, index: int) -> Caller:
    credential = issue_credential(session, session.get_one(Client, rows.client_ids[index]))
    session.commit()
    return caller.with_token(credential)


def path(rows: OpenRun, index: int) -> str:
    return f"/runs/{rows.run_id}/clients/{rows.client_ids[index]}/adapter"


def test_adapters_are_listed(viewer: Caller, rows: OpenRun, ref: BlobRef) -> None:
    [adapter] = viewer.get(f"/runs/{rows.run_id}/adapters").json()["items"]
    assert adapter["client_id"] == str(rows.client_ids[0])
    assert (adapter["sha256"], adapter["size_bytes"]) == (ref.sha256, len(ZIP))


def test_users_and_the_client_itself_download(
    viewer: Caller, anonymous: Caller, session: Session, rows: OpenRun, ref: BlobRef
) -> None:
    for caller in (viewer, as_client(anonymous, session, rows, 0)):
        response = caller.get(path(rows, 0))
        assert response.status_code == 200
        assert response.content == ZIP
        assert response.headers["content-type"] == "application/zip"
        assert response.headers["content-length"] == str(len(ZIP))
        assert response.headers["etag"] == f'"{ref.sha256}"'
        assert response.headers["content-disposition"].startswith("attachment; filename*=UTF-8''")


def test_a_foreign_client_is_refused(anonymous: Caller, session: Session, rows: OpenRun) -> None:
    foreign = as_client(anonymous, session, rows, 1)
    body = problem(foreign.get(path(rows, 0)), 403, "forbidden")
    assert str(rows.client_ids[0]) in body["detail"]
    problem(anonymous.get(path(rows, 0)), 401, "unauthenticated")


def test_a_client_without_an_adapter(viewer: Caller, rows: OpenRun) -> None:
    body = problem(viewer.get(path(rows, 1)), 404, "not_found")
    assert "Adapters are exported after the last round" in body["detail"]


def test_a_lost_blob_is_named_before_the_answer_begins(
    viewer: Caller, rows: OpenRun, ref: BlobRef, blob_store: BlobStore
) -> None:
    blob_store.delete(ref.sha256)
    body = problem(viewer.get(path(rows, 0)), 500, "blob_missing")
    assert ref.sha256 in body["detail"]


def test_a_store_that_is_away_is_worth_another_try(
    viewer: Caller,
    rows: OpenRun,
    ref: BlobRef,
    blob_store: BlobStore,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def away(self: BlobStore, sha256: str) -> None:
        raise BlobStoreUnavailableError("The blob store is away.")

    with monkeypatch.context() as outage:
        outage.setattr(type(blob_store), "open", away)
        response = viewer.get(path(rows, 0))
        problem(response, 503, "blob_store_unavailable")
        assert response.headers["retry-after"] == "5"
    assert viewer.get(path(rows, 0)).content == ZIP


def test_a_damaged_blob_never_looks_complete(
    viewer: Caller, rows: OpenRun, ref: BlobRef, settings: Settings
) -> None:
    folder = Path(unquote(urlparse(settings.blob_url or "").path))
    (folder / ref.sha256[:2] / ref.sha256[2:]).write_bytes(b"\x00" * len(ZIP))
    response = viewer.get(path(rows, 0))
    assert len(response.content) < len(ZIP)


@pytest.mark.parametrize(
    ("wanted", "start", "stop"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=100-1299999", 100, 1_280_004),
        ("bytes=1280000-", 1_280_000, 1_280_004),
        ("bytes=-3", 1_280_001, 1_280_004),
        ("bytes=-9999999", 0, 1_280_004),
    ],
)
def test_a_broken_download_goes_on(
    viewer: Caller, rows: OpenRun, ref: BlobRef, wanted: str, start: int, stop: int
) -> None:
    for headers in ({"Range": wanted}, {"Range": wanted, "If-Range": f'"{ref.sha256}"'}):
        response = viewer.get(path(rows, 0), headers=headers)
        assert response.status_code == 206
        assert response.content == ZIP[start:stop]
        assert response.headers["content-range"] == f"bytes {start}-{stop - 1}/{len(ZIP)}"
        assert response.headers["content-length"] == str(stop - start)


@pytest.mark.parametrize("wanted", ["bytes=0-1,5-9", "bytes=9-2", "bytes=-", "lines=1-2"])
def test_other_ranges_give_the_whole(viewer: Caller, rows: OpenRun, wanted: str) -> None:
    response = viewer.get(path(rows, 0), headers={"Range": wanted})
    assert (response.status_code, response.content) == (200, ZIP)


def test_a_range_of_another_version_gives_the_whole(viewer: Caller, rows: OpenRun) -> None:
    headers = {"Range": "bytes=0-9", "If-Range": '"older"'}
    assert viewer.get(path(rows, 0), headers=headers).content == ZIP


@pytest.mark.parametrize("wanted", [f"bytes={len(ZIP)}-", "bytes=-0"])
def test_a_range_behind_the_end(viewer: Caller, rows: OpenRun, wanted: str) -> None:
    response = viewer.get(path(rows, 0), headers={"Range": wanted})
    problem(response, 416, "range_not_satisfiable")
    assert response.headers["content-range"] == f"bytes */{len(ZIP)}"


def test_known_bytes_are_not_sent_again(viewer: Caller, rows: OpenRun, ref: BlobRef) -> None:
    for tags in (f'"{ref.sha256}"', f'"x", W/"{ref.sha256}"', "*"):
        response = viewer.get(path(rows, 0), headers={"If-None-Match": tags})
        assert (response.status_code, response.content) == (304, b"")
        assert response.headers["etag"] == f'"{ref.sha256}"'
    assert viewer.get(path(rows, 0), headers={"If-None-Match": '"x"'}).content == ZIP
