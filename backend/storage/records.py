"""Blobs with their rows in the database."""

from sqlalchemy import func
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from backend.db.models import Blob
from backend.storage.blobs import BlobRef, BlobStore, BlobStoreUnavailableError, Content


def save_blob(session: Session, store: BlobStore, content: Content, media_type: str) -> BlobRef:
    """Stores bytes and their row, bytes first: a row that is seen always has its bytes.

    The row leaves with the caller's commit; bytes that are stored already keep their row.

    Raises:
        BlobStoreUnavailableError: the store failed, or the garbage collection took the same bytes
            away in this moment; trying again helps.
    """
    ref = store.put(content, media_type)
    add_blob_row(session, store, ref)
    return ref


def add_blob_row(session: Session, store: BlobStore, ref: BlobRef) -> None:
    """Adds the row of bytes that were stored before, for callers that held no session then.

    Raises:
        BlobStoreUnavailableError: as for `save_blob`.
    """
    session.execute(
        insert(Blob)
        .values(sha256=ref.sha256, size_bytes=ref.size_bytes, media_type=ref.media_type)
        .on_conflict_do_update(index_elements=[Blob.sha256], set_={Blob.last_stored_at: func.now()})
    )
    if not store.exists(ref.sha256):  # from here on, the row keeps the collection away
        raise BlobStoreUnavailableError(
            f"Blob {ref.sha256} was removed while it was stored. Try again."
        )
