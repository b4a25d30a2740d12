"""Blobs with their rows in the database."""

from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from backend.db.models import Blob
from backend.storage.blobs import BlobRef, BlobStore, Content


def save_blob(session: Session, store: BlobStore, content: Content, media_type: str) -> BlobRef:
    """Stores bytes and their row, bytes first: a row that is seen always has its bytes.

    The row leaves with the caller's commit; bytes that are stored already keep their row.
    """
    ref = store.put(content, media_type)
    add_blob_row(session, ref)
    return ref


def add_blob_row(session: Session, ref: BlobRef) -> None:
    """Adds the row of bytes that were stored before, for callers that held no session then."""
    session.execute(
        insert(Blob)
        .values(sha256=ref.sha256, size_bytes=ref.size_bytes, media_type=ref.media_type)
        .on_conflict_do_nothing()
    )
