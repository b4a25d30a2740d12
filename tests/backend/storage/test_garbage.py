"""Garbage collection: what nothing needs goes, everything else stays, whoever stores meanwhile."""

from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from backend.contracts.datasets import UploadedDataset
from backend.db.models import Blob, Client, ClientUpdate, Run, Upload, UploadPiece
from backend.db.session import SessionFactory
from backend.storage import (
    BlobRef,
    BlobStore,
    BlobStoreUnavailableError,
    add_blob_row,
    open_blob_store,
    save_blob,
)
from backend.storage.garbage import Garbage, collect_garbage, find_garbage
from tests.backend.rows import OpenRun, add_open_run

DAY = timedelta(days=1)


@pytest.fixture
def store(tmp_path: Path) -> BlobStore:
    return open_blob_store((tmp_path / "blobs").as_uri())


@pytest.fixture
def rows(session: Session) -> OpenRun:
    return add_open_run(session)


def stored(session: Session, store: BlobStore, content: bytes) -> BlobRef:
    ref = save_blob(session, store, content, "text/plain")
    session.commit()
    return ref


def age(session: Session) -> None:
    """Everything was stored two days ago."""
    session.execute(update(Blob).values(last_stored_at=func.now() - 2 * DAY))
    session.execute(update(Upload).values(created_at=func.now() - 2 * DAY))
    session.commit()


def test_only_what_nothing_refers_to_goes(
    session: Session, session_factory: SessionFactory, store: BlobStore, rows: OpenRun
) -> None:
    kept = {name: stored(session, store, name.encode()) for name in ("state", "plan", "adapter")}
    rows_data = stored(session, store, b"rows")
    session.get_one(Run, rows.run_id).state_sha256 = kept["state"].sha256
    row = session.get_one(ClientUpdate, rows.update_ids[0])
    row.plan_sha256, row.adapter_sha256 = kept["plan"].sha256, kept["adapter"].sha256
    dataset = UploadedDataset(
        format="json_lines", sha256=rows_data.sha256, num_train=1, num_validation=0, num_test=1
    )
    session.get_one(Client, rows.client_ids[0]).dataset = dataset.model_dump(mode="json")
    garbage = [stored(session, store, b"old"), stored(session, store, b"older")]
    age(session)
    fresh = stored(session, store, b"fresh")

    expected = Garbage(num_blobs=2, size_bytes=8, num_strays=0)
    assert find_garbage(session_factory, store, DAY) == expected
    assert all(store.exists(ref.sha256) for ref in garbage), "only looked at"
    assert collect_garbage(session_factory, store, DAY) == expected
    assert collect_garbage(session_factory, store, DAY) == Garbage(0, 0, 0)
    assert not any(store.exists(ref.sha256) for ref in garbage)
    assert all(store.exists(ref.sha256) for ref in [*kept.values(), rows_data, fresh])


def test_pieces_of_an_upload_nobody_goes_on_with(
    session: Session, session_factory: SessionFactory, store: BlobStore, rows: OpenRun
) -> None:
    ref = stored(session, store, b"piece")
    upload = Upload(client_update_id=rows.update_ids[0], sha256="1" * 64, size_bytes=10)
    session.add(upload)
    session.flush()
    session.add(UploadPiece(upload_id=upload.id, start=0, size_bytes=5, sha256=ref.sha256))
    session.execute(update(Blob).values(last_stored_at=func.now() - 2 * DAY))
    session.commit()
    assert collect_garbage(session_factory, store, DAY).num_blobs == 0, "it may still go on"
    age(session)
    assert collect_garbage(session_factory, store, DAY).num_blobs == 1
    assert session.scalar(select(func.count()).select_from(Upload)) == 0


def test_objects_without_a_row(
    session: Session, session_factory: SessionFactory, store: BlobStore, rows: OpenRun
) -> None:
    stray = store.put(b"a process died before its row", "text/plain")
    referred = stored(session, store, b"known")
    session.get_one(ClientUpdate, rows.update_ids[0]).plan_sha256 = referred.sha256
    session.commit()
    assert collect_garbage(session_factory, store, DAY).num_strays == 0, "its row may come yet"
    assert find_garbage(session_factory, store, timedelta(0)).num_strays == 1
    assert collect_garbage(session_factory, store, timedelta(0)).num_strays == 1
    assert not store.exists(stray.sha256)


def test_whoever_stores_what_is_being_removed_is_told_to_try_again(
    session: Session, store: BlobStore
) -> None:
    ref = store.put(b"content", "text/plain")
    store.delete(ref.sha256)  # what a collection does between the bytes and their row
    with pytest.raises(BlobStoreUnavailableError, match="Try again"):
        add_blob_row(session, store, ref)


def test_storing_again_keeps_a_blob(
    session: Session, session_factory: SessionFactory, store: BlobStore
) -> None:
    ref = stored(session, store, b"content")
    age(session)
    stored(session, store, b"content")
    assert collect_garbage(session_factory, store, DAY).num_blobs == 0
    assert store.exists(ref.sha256)
