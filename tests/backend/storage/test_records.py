"""Rows of blobs."""

from sqlalchemy import select
from sqlalchemy.orm import Session

from backend.db.models import Blob
from backend.storage import BlobStore, save_blob


def test_storing_twice_gives_one_row(session: Session, blob_store: BlobStore) -> None:
    first = save_blob(session, blob_store, b"some bytes", "text/plain")
    second = save_blob(session, blob_store, iter([b"some ", b"bytes"]), "text/plain")
    session.commit()
    assert first == second
    rows = session.scalars(select(Blob)).all()
    assert [(row.sha256, row.size_bytes, row.media_type) for row in rows] == [
        (first.sha256, 10, "text/plain")
    ]
