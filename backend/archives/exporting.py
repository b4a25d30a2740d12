"""A federation as a stream of bytes; memory follows the number of its blobs, never their size.

The rows are read in one transaction, so that they fit each other, and wait on disk; no transaction
is open while bytes leave. Blobs do not change, and what was needed until now the garbage collection
leaves for its grace time.
"""

import hashlib
import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from tempfile import SpooledTemporaryFile
from typing import BinaryIO, cast
from uuid import UUID
from zipfile import ZIP_STORED, ZipFile, ZipInfo

from backend.archives.manifest import (
    CHUNK_BYTES,
    MANIFEST,
    Entry,
    Manifest,
    blob_entry,
    table_entry,
)
from backend.archives.tables import TABLES, exported, rows_of, to_line
from backend.db.migrate import newest_revision
from backend.db.models import Federation
from backend.db.session import SessionFactory
from backend.errors import NotFoundError
from backend.storage import BlobStore

MEMORY_BYTES = 2**20  # what is longer waits in a file without a name
ROWS_AT_ONCE = 1000


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All rows of a federation at one moment, as lines in files at their first byte."""

    federation: str
    tables: dict[str, BinaryIO]

    def blobs(self) -> Iterator[str]:
        """Hashes of the blobs to which rows refer."""
        file = self.tables["blobs"]
        file.seek(0)
        for line in file:
            yield json.loads(line)["sha256"]


@contextmanager
def snapshot(session_factory: SessionFactory, federation_id: UUID) -> Iterator[Snapshot]:
    """Reads the rows of a federation.

    Raises:
        NotFoundError: no such federation.
    """
    with ExitStack() as files:
        tables: dict[str, BinaryIO] = {}
        with session_factory() as session:
            session.connection(execution_options={"isolation_level": "REPEATABLE READ"})
            federation = session.get(Federation, federation_id)
            if federation is None:
                raise NotFoundError(f"There is no federation {federation_id}.")
            for name in TABLES:
                spool = files.enter_context(SpooledTemporaryFile(max_size=MEMORY_BYTES))
                query = rows_of(name, federation_id).execution_options(yield_per=ROWS_AT_ONCE)
                for row in session.execute(query):
                    spool.write(to_line(exported(name), tuple(row)))
                spool.seek(0)
                tables[name] = cast(BinaryIO, spool)
        yield Snapshot(federation.name, tables)


def stream_archive(taken: Snapshot, store: BlobStore) -> Iterator[bytes]:
    """The archive in chunks of a MiB or so.

    Raises:
        BlobMissingError: bytes are gone; what came so far is no archive, as is so for all errors.
        BlobCorruptedError: bytes are not those that were stored.
        BlobStoreUnavailableError: the store failed.
    """
    sink = _Sink()
    entries: list[Entry] = []
    with ZipFile(sink, "w", ZIP_STORED) as archive:
        for name in TABLES:
            for _ in _add(archive, table_entry(name), taken.tables[name], entries):
                yield sink.take()
        for sha256 in taken.blobs():
            with store.open(sha256) as content:
                for _ in _add(archive, blob_entry(sha256), content, entries):
                    yield sink.take()
        manifest = Manifest(
            schema_revision=newest_revision(),
            platform_version=version("fedbraid"),
            federation=taken.federation,
            created_at=datetime.now(UTC),
            entries=entries,
        )
        archive.writestr(ZipInfo(MANIFEST), manifest.model_dump_json(indent=1))
    yield sink.take()


def _add(archive: ZipFile, name: str, content: BinaryIO, entries: list[Entry]) -> Iterator[None]:
    """Adds an entry, with a pause after each chunk."""
    digest, size_bytes = hashlib.sha256(), 0
    with archive.open(ZipInfo(name), "w", force_zip64=True) as target:
        while chunk := content.read(CHUNK_BYTES):
            target.write(chunk)
            digest.update(chunk)
            size_bytes += len(chunk)
            yield
    entries.append(Entry(name=name, size_bytes=size_bytes, sha256=digest.hexdigest()))


class _Sink:
    """Where the zip writer writes; it cannot go back, because the bytes have left."""

    def __init__(self) -> None:
        self._bytes = bytearray()

    def write(self, data: bytes) -> int:
        """Takes bytes."""
        self._bytes += data
        return len(data)

    def flush(self) -> None:
        """Nothing to do."""

    def close(self) -> None:
        """Nothing to do."""

    def take(self) -> bytes:
        """All that was written since the last time."""
        taken = bytes(self._bytes)
        self._bytes.clear()
        return taken
