"""A blob store that may be away for a while: a job waits for it instead of starting anew.

While a job waits, the heartbeats of its attempt go on, so nobody else takes its work over. A store
that stays away longer fails the job as before, and the sweep sends it again.
"""

import logging
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import BinaryIO, TypeVar, cast

from backend.storage.blobs import (
    BlobRef,
    BlobStore,
    BlobStoreUnavailableError,
    Content,
    StoredObject,
)

logger = logging.getLogger(__name__)

T = TypeVar("T")

FIRST_WAIT_SECONDS = 0.5
LONGEST_WAIT_SECONDS = 10.0


class PatientBlobStore:
    """A `BlobStore` that repeats what failed because the store was away.

    Waits double from `FIRST_WAIT_SECONDS` to `LONGEST_WAIT_SECONDS`. A content that can be read
    only once is tried once; so is what remains of a stream that breaks while it is read.

    Args:
        store: the store.
        patience_seconds: no try begins later than this after the first one.
        sleep: waits so many seconds.
        clock: seconds that only grow.
    """

    def __init__(
        self,
        store: BlobStore,
        patience_seconds: float,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._patience_seconds = patience_seconds
        self._sleep = sleep
        self._clock = clock

    def put(self, content: Content, media_type: str) -> BlobRef:
        """See `BlobStore.put`."""
        if isinstance(content, bytes):
            return self._patiently(partial(self._store.put, content, media_type))
        if not (hasattr(content, "seekable") and content.seekable()):
            return self._store.put(content, media_type)
        file = cast(BinaryIO, content)
        start = file.tell()

        def from_start() -> BlobRef:
            file.seek(start)
            return self._store.put(file, media_type)

        return self._patiently(from_start)

    def open(self, sha256: str) -> BinaryIO:
        """See `BlobStore.open`."""
        return self._patiently(partial(self._store.open, sha256))

    def open_range(self, sha256: str, start: int, stop: int) -> Iterator[bytes]:
        """See `BlobStore.open_range`."""
        return self._patiently(partial(self._store.open_range, sha256, start, stop))

    def read(self, sha256: str) -> bytes:
        """See `BlobStore.read`."""
        return self._patiently(partial(self._store.read, sha256))

    def exists(self, sha256: str) -> bool:
        """See `BlobStore.exists`."""
        return self._patiently(partial(self._store.exists, sha256))

    def delete(self, sha256: str) -> None:
        """See `BlobStore.delete`."""
        self._patiently(partial(self._store.delete, sha256))

    def objects(self) -> Iterator[list[StoredObject]]:
        """See `BlobStore.objects`."""
        return self._store.objects()

    def delete_object(self, name: str) -> None:
        """See `BlobStore.delete_object`."""
        self._patiently(partial(self._store.delete_object, name))

    def _patiently(self, call: Callable[[], T]) -> T:
        deadline = self._clock() + self._patience_seconds
        wait = FIRST_WAIT_SECONDS
        while True:
            try:
                return call()
            except BlobStoreUnavailableError as error:
                if self._clock() + wait > deadline:
                    raise
                logger.warning("%s Trying again in %g s.", error, wait)
            self._sleep(wait)
            wait = min(2 * wait, LONGEST_WAIT_SECONDS)
