"""Garbage collection: which stored bytes nothing needs any more, and taking them away.

A blob is needed while a row refers to it, and for a grace time after it was last stored, because
its row comes before the row that refers to it. Every foreign key on `blobs` counts by itself, so a
new table cannot be forgotten here; the database refuses the removal of a blob that is referred to.

The row of a blob is locked while its bytes go. Whoever stores the same bytes at that moment waits
for the row, then finds the bytes missing (`records.add_blob_row`) and stores them again.
"""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from sqlalchemy import ColumnElement, and_, delete, exists, func, select
from sqlalchemy.orm import Session

from backend.db.base import Base
from backend.db.models import Blob, Client, Upload
from backend.db.session import SessionFactory
from backend.storage.blobs import BlobStore

BATCH = 500


@dataclass(frozen=True, slots=True)
class Garbage:
    """What may go, or what went.

    Attributes:
        num_blobs: blobs that no row refers to.
        size_bytes: of these blobs.
        num_strays: objects without a row, such as those of a process that died.
    """

    num_blobs: int
    size_bytes: int
    num_strays: int


def find_garbage(session_factory: SessionFactory, store: BlobStore, grace: timedelta) -> Garbage:
    """What a collection would take away now, besides pieces of uploads that nobody goes on with.

    Args:
        session_factory: of the platform's database.
        store: of the same platform.
        grace: how long a blob that nothing refers to is kept.
    """
    with session_factory() as session:
        query = select(func.count(), func.coalesce(func.sum(Blob.size_bytes), 0))
        num_blobs, size_bytes = session.execute(query.where(_is_unneeded(grace))).one()
    return Garbage(num_blobs, int(size_bytes), len(_strays(session_factory, store, grace)))


def collect_garbage(session_factory: SessionFactory, store: BlobStore, grace: timedelta) -> Garbage:
    """Takes away what nothing needs; several processes may do it at once.

    Raises:
        BlobStoreUnavailableError: the store failed; what went before that stays away.
    """
    with session_factory() as session:
        session.execute(delete(Upload).where(Upload.created_at < func.now() - grace))
        session.commit()
    num_blobs, size_bytes = 0, 0
    while batch := _collect_batch(session_factory, store, grace):
        num_blobs, size_bytes = num_blobs + len(batch), size_bytes + sum(batch)
    strays = _strays(session_factory, store, grace)
    for name in strays:
        store.delete_object(name)
    return Garbage(num_blobs, size_bytes, len(strays))


def _collect_batch(
    session_factory: SessionFactory, store: BlobStore, grace: timedelta
) -> list[int]:
    """Sizes of the blobs that went."""
    with session_factory() as session:
        blobs = session.scalars(
            select(Blob)
            .where(_is_unneeded(grace))
            .order_by(Blob.sha256)
            .limit(BATCH)
            .with_for_update(skip_locked=True)
        ).all()
        for blob in blobs:
            session.delete(blob)
        session.flush()  # a reference that has come meanwhile fails here, before any bytes go
        for blob in blobs:
            store.delete(blob.sha256)
        session.commit()
        return [blob.size_bytes for blob in blobs]


def _is_unneeded(grace: timedelta) -> ColumnElement[bool]:
    references = [
        exists().where(column == Blob.sha256).correlate(Blob)
        for table in Base.metadata.sorted_tables
        for column in table.columns
        if any(key.column.table is Blob.__table__ for key in column.foreign_keys)
    ]
    dataset = Client.dataset["sha256"].as_string()
    references.append(exists().where(dataset == Blob.sha256).correlate(Blob))
    return and_(Blob.last_stored_at < func.now() - grace, *(~reference for reference in references))


def _strays(session_factory: SessionFactory, store: BlobStore, grace: timedelta) -> list[str]:
    """Names of objects that are older than the grace time and have no row."""
    before = datetime.now(UTC) - grace
    strays: list[str] = []
    for page in store.objects():
        old = {entry.name: entry.sha256 for entry in page if entry.modified_at < before}
        with session_factory() as session:
            known = _known(session, {sha256 for sha256 in old.values() if sha256})
        strays += [name for name, sha256 in old.items() if sha256 not in known]
    return strays


def _known(session: Session, hashes: set[str]) -> set[str]:
    return set(session.scalars(select(Blob.sha256).where(Blob.sha256.in_(hashes))))
