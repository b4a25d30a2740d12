"""Blobs in a folder or in an S3 bucket, through obstore."""

import hashlib
import io
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta
from itertools import chain
from typing import TYPE_CHECKING, Any, BinaryIO, cast
from uuid import uuid4

from obstore import open_writer
from obstore.exceptions import BaseError, NotFoundError
from obstore.store import ObjectStore, from_url

from backend.storage.blobs import (
    BlobCorruptedError,
    BlobMissingError,
    BlobRef,
    BlobStore,
    BlobStoreUnavailableError,
    Content,
    StoredObject,
)

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer
    from obstore import WritableFile

CHUNK_BYTES = 2**20
PART_BYTES = 8 * 2**20
"""A longer stream goes to a temporary object, part by part; S3 wants parts of 5 MiB or more."""
LIST_PAGE = 1000
INCOMING = "incoming"
"""Folder of temporary objects, whose names say nothing of their content."""
# Short: whoever can wait longer does so itself (`worker.patient_store`); the API answers 503.
_RETRIES = {"max_retries": 3, "retry_timeout": timedelta(seconds=10)}
_OPTIONS: dict[str, dict[str, Any]] = {"file": {"mkdir": True}, "s3": {"retry_config": _RETRIES}}
_SHA256 = re.compile(r"[0-9a-f]{64}")


class ObjectBlobStore:
    """A `BlobStore` over any obstore; the object of hash `abcd...` is `ab/cd...`.

    The name of a streamed content is known only at its end. A long one is therefore written to
    `incoming/...` while it is hashed, and renamed when it is whole; nobody reads from there. What
    a process that died left there is removed by the garbage collection.
    """

    def __init__(self, store: ObjectStore) -> None:
        self._store = store

    def put(self, content: Content, media_type: str) -> BlobRef:
        """See `BlobStore.put`."""
        if isinstance(content, bytes):
            return self._put_short(content, media_type)
        chunks = _chunks(content)
        head = bytearray()
        for chunk in chunks:
            head += chunk
            if len(head) > PART_BYTES:
                return self._put_long(chain([bytes(head)], chunks), media_type)
        return self._put_short(bytes(head), media_type)

    def _put_short(self, content: bytes, media_type: str) -> BlobRef:
        sha256 = hashlib.sha256(content).hexdigest()
        with _writing(sha256):
            self._store.put(blob_path(sha256), content)
        return BlobRef(sha256, len(content), media_type)

    def _put_long(self, chunks: Iterator[bytes], media_type: str) -> BlobRef:
        incoming = f"{INCOMING}/{uuid4().hex}"
        digest, size_bytes = hashlib.sha256(), 0
        with _writing(incoming):
            writer = open_writer(self._store, incoming, buffer_size=PART_BYTES, max_concurrency=1)
        try:
            for chunk in chunks:  # errors of the source are the caller's
                digest.update(chunk)
                size_bytes += len(chunk)
                with _writing(incoming):
                    writer.write(chunk)
            with _writing(incoming):
                writer.close()
                self._store.rename(incoming, blob_path(digest.hexdigest()))
        except BaseException:
            self._abandon(writer, incoming)
            raise
        return BlobRef(digest.hexdigest(), size_bytes, media_type)

    def _abandon(self, writer: "WritableFile", incoming: str) -> None:
        """Removes a temporary object; a store that fails now has it removed later."""
        with suppress(BaseError, OSError):
            if not writer.closed():
                writer.close()  # completes the upload, which could not be deleted otherwise
            self._store.delete(incoming)

    def open(self, sha256: str) -> BinaryIO:
        """See `BlobStore.open`."""
        with naming_errors(sha256):
            stream = self._store.get(blob_path(sha256)).stream(min_chunk_size=CHUNK_BYTES)
        return cast(BinaryIO, io.BufferedReader(_VerifiedReader(iter(stream), sha256), CHUNK_BYTES))

    def open_range(self, sha256: str, start: int, stop: int) -> Iterator[bytes]:
        """See `BlobStore.open_range`."""
        with naming_errors(sha256):
            found = self._store.get(blob_path(sha256), options={"range": (start, stop)})
            stream = iter(found.stream(min_chunk_size=CHUNK_BYTES))
        return _ranged(stream, sha256)

    def read(self, sha256: str) -> bytes:
        """See `BlobStore.read`."""
        with self.open(sha256) as stream:
            return stream.read()

    def exists(self, sha256: str) -> bool:
        """See `BlobStore.exists`."""
        try:
            with naming_errors(sha256):
                self._store.head(blob_path(sha256))
        except BlobMissingError:
            return False
        return True

    def delete(self, sha256: str) -> None:
        """See `BlobStore.delete`."""
        if self.exists(sha256):
            with naming_errors(sha256):
                self._store.delete(blob_path(sha256))

    def objects(self) -> Iterator[list[StoredObject]]:
        """See `BlobStore.objects`."""
        pages = iter(self._store.list(chunk_size=LIST_PAGE))
        while True:
            with naming_errors("list"):
                page = next(pages, None)
            if page is None:
                return
            yield [_stored(meta["path"], meta["last_modified"]) for meta in page]

    def delete_object(self, name: str) -> None:
        """See `BlobStore.delete_object`."""
        with suppress(BlobMissingError), naming_errors(name):
            self._store.delete(name)


class _VerifiedReader(io.RawIOBase):
    """Reads one chunk ahead, so that the last chunk leaves only when the hash is right."""

    def __init__(self, chunks: Iterator[bytes], sha256: str) -> None:
        super().__init__()
        self._chunks = chunks
        self._sha256 = sha256
        self._digest = hashlib.sha256()
        self._ready = memoryview(b"")
        self._ahead: bytes | None = self._fetch()

    def readable(self) -> bool:
        """Always."""
        return True

    def readinto(self, buffer: "WriteableBuffer") -> int:
        """Fills the buffer as far as the current chunk goes; 0 at the verified end."""
        if not self._ready and self._ahead is not None:
            ready, self._ahead = self._ahead, self._fetch()
            self._ready = memoryview(ready)
        target = memoryview(buffer).cast("B")
        size = min(len(target), len(self._ready))
        target[:size] = self._ready[:size]
        self._ready = self._ready[size:]
        return size

    def _fetch(self) -> bytes | None:
        with naming_errors(self._sha256):
            chunk = next(self._chunks, None)
        if chunk is not None:
            self._digest.update(chunk)
            return bytes(chunk)
        if self._digest.hexdigest() != self._sha256:
            raise BlobCorruptedError(
                f"The stored bytes of blob {self._sha256} have the SHA-256 "
                f"{self._digest.hexdigest()}: the file was changed or damaged after it was "
                "stored. Restore it from a backup."
            )
        return None


def open_blob_store(url: str) -> BlobStore:
    """The blob store at a URL.

    Args:
        url: `file:///folder`, which is made where missing, or `s3://bucket/prefix`; the
            credentials, endpoint and region of S3 come from the customary `AWS_*` variables.

    Raises:
        ValueError: another kind of URL.
        BlobStoreUnavailableError: the folder cannot be made or the credentials are incomplete.
    """
    return ObjectBlobStore(open_object_store(url))


def open_object_store(url: str, *, endpoint: str | None = None) -> ObjectStore:
    """The object store under a blob store.

    Args:
        url: as for `open_blob_store`.
        endpoint: of S3, such as `https://s3.example.org`; None: that of the `AWS_*` variables.

    Raises:
        ValueError: another kind of URL.
        BlobStoreUnavailableError: as for `open_blob_store`.
    """
    scheme = url.partition("://")[0]
    options = dict(_OPTIONS.get(scheme, {}))
    if scheme not in {"file", "s3"}:
        raise ValueError(f"BLOB_URL is {url!r}: use file:///folder or s3://bucket/prefix")
    if endpoint is not None:
        options |= {"endpoint": endpoint, "client_options": {"allow_http": True}}
    try:
        return from_url(url, **options)
    except (BaseError, OSError) as error:
        raise BlobStoreUnavailableError(
            f"The blob store {url!r} cannot be opened: {_first_line(error)}. Check BLOB_URL and, "
            "for S3, the AWS_* variables."
        ) from error


def blob_path(sha256: str) -> str:
    """Where a blob lies in its store.

    Raises:
        ValueError: no SHA-256.
    """
    if not _SHA256.fullmatch(sha256):
        raise ValueError(f"{sha256!r} is not a SHA-256 in lower-case hexadecimal digits")
    return f"{sha256[:2]}/{sha256[2:]}"


def _stored(name: str, modified_at: datetime) -> StoredObject:
    sha256 = name.replace("/", "", 1)
    is_blob = bool(_SHA256.fullmatch(sha256)) and name == blob_path(sha256)
    return StoredObject(name, sha256 if is_blob else None, modified_at)


def _chunks(content: Iterable[bytes]) -> Iterator[bytes]:
    if isinstance(content, io.IOBase):  # iterating a file would give lines
        return iter(lambda: content.read(CHUNK_BYTES), b"")
    return iter(content)


def _ranged(stream: Iterator[Any], sha256: str) -> Iterator[bytes]:
    while True:
        with naming_errors(sha256):
            chunk = next(stream, None)
        if chunk is None:
            return
        yield bytes(chunk)


@contextmanager
def _writing(name: str) -> Iterator[None]:
    try:
        with naming_errors(name):
            yield
    except BlobMissingError as error:  # what a store says of a bucket that is not there
        raise BlobStoreUnavailableError(
            "The blob store has no such bucket or folder: create it, or correct BLOB_URL."
        ) from error


@contextmanager
def naming_errors(sha256: str) -> Iterator[None]:
    """Gives the errors of all kinds of stores our own names.

    Args:
        sha256: of the blob, or the name of a temporary object.
    """
    try:
        yield
    except (FileNotFoundError, NotFoundError) as error:
        raise BlobMissingError(
            f"Blob {sha256} is not in the blob store. Check that BLOB_URL is the same for every "
            "program, or restore the blob from a backup."
        ) from error
    except (BaseError, OSError) as error:
        raise BlobStoreUnavailableError(
            f"The blob store failed at blob {sha256}: {_first_line(error)}"
        ) from error


def _first_line(error: BaseException) -> str:
    """Obstore appends pages of debugging output, which may name buckets and requests."""
    return str(error).partition("\n")[0]
