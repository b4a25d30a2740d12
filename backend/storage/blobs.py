"""What a blob is, what stores blobs, and what can go wrong with them."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import BinaryIO, Protocol

from backend.errors import PlatformError, RetryableJobError

Content = bytes | BinaryIO | Iterable[bytes]
"""Bytes to store: all at once, an open binary file, or chunks."""


@dataclass(frozen=True)
class BlobRef:
    """Stored bytes by their content: equal bytes have equal references.

    Attributes:
        sha256: 64 lower-case hexadecimal digits; the name of the blob.
        size_bytes: length of the content.
        media_type: what the bytes are, such as `application/zip`.
    """

    sha256: str
    size_bytes: int
    media_type: str


@dataclass(frozen=True)
class StoredObject:
    """Something that lies in the store.

    Attributes:
        name: where it lies.
        sha256: of the blob that lies there; None: a temporary object, or something foreign.
        modified_at: when it was written.
    """

    name: str
    sha256: str | None
    modified_at: datetime


class BlobMissingError(PlatformError):
    """A blob that the database knows is not in the store."""

    status = 500
    code = "blob_missing"


class BlobCorruptedError(PlatformError):
    """The stored bytes are not those that were put."""

    status = 500
    code = "blob_corrupted"


class BlobStoreUnavailableError(PlatformError, RetryableJobError):
    """The store cannot be reached, is full, or refuses us; trying again later may help."""

    status = 503
    code = "blob_store_unavailable"


class BlobStore(Protocol):
    """Bytes named by their SHA-256. Every method may raise `BlobStoreUnavailableError`."""

    def put(self, content: Content, media_type: str) -> BlobRef:
        """Stores bytes; nobody ever sees a part of them, and storing them twice is harmless.

        Memory stays bounded (some 8 MiB) whatever the size of a streamed content, whose hash is
        computed on its way to a temporary object, which becomes the blob in one step.
        """
        ...

    def open(self, sha256: str) -> BinaryIO:
        """The content as a stream to read once; also a context manager.

        The last MiB comes only after the hash of everything is verified, so a reader that
        finished has the right bytes, and a reader of corrupted bytes notices a short content.

        Raises:
            BlobMissingError: at once, when there is no such blob.
            BlobCorruptedError: while reading, at once for small blobs.
        """
        ...

    def open_range(self, sha256: str, start: int, stop: int) -> Iterator[bytes]:
        """The bytes from `start` up to, not including, `stop`, in chunks of some MiB.

        A part cannot be verified; whoever joins parts compares the hash of the whole.

        Args:
            sha256: which blob.
            start: first byte, >= 0.
            stop: > `start` and <= the size of the blob.

        Raises:
            BlobMissingError: at once, when there is no such blob.
        """
        ...

    def read(self, sha256: str) -> bytes:
        """The whole verified content.

        Raises:
            BlobMissingError: there is no such blob.
            BlobCorruptedError: the bytes do not have this hash.
        """
        ...

    def exists(self, sha256: str) -> bool:
        """True when the store holds this blob; the bytes are not read."""
        ...

    def delete(self, sha256: str) -> None:
        """Removes a blob; one that is not there is no error."""
        ...

    def objects(self) -> Iterator[list[StoredObject]]:
        """All that lies in the store, in pages, in no order."""
        ...

    def delete_object(self, name: str) -> None:
        """Removes what `objects` named; one that is not there is no error."""
        ...
