"""A store that is away for a while: jobs wait for it, and give up in the end."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import pytest

from backend.storage.blobs import BlobRef, BlobStore, BlobStoreUnavailableError, Content
from backend.storage.object_store import ObjectBlobStore, open_blob_store
from worker.patient_store import PatientBlobStore


class Clock:
    """Time that passes only while somebody sleeps."""

    def __init__(self) -> None:
        self.now = 0.0

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class Away:
    """A store that fails until a time, after it has read what it was given."""

    def __init__(self, store: BlobStore, clock: Clock, until: float) -> None:
        self._store = store
        self._clock = clock
        self._until = until

    def _check(self) -> None:
        if self._clock.now < self._until:
            raise BlobStoreUnavailableError("The blob store is away.")

    def put(self, content: Content, media_type: str) -> BlobRef:
        data = content if isinstance(content, bytes) else b"".join(content)
        self._check()
        return self._store.put(data, media_type)

    def open(self, sha256: str) -> BinaryIO:
        self._check()
        return self._store.open(sha256)

    def read(self, sha256: str) -> bytes:
        self._check()
        return self._store.read(sha256)


@pytest.fixture
def store(tmp_path: Path) -> BlobStore:
    store = open_blob_store((tmp_path / "blobs").as_uri())
    assert isinstance(store, ObjectBlobStore)
    return store


def patient(store: BlobStore, clock: Clock, away_seconds: float) -> PatientBlobStore:
    away = Away(store, clock, away_seconds)
    return PatientBlobStore(away, 120, clock.sleep, lambda: clock.now)  # type: ignore[arg-type]


def test_a_minute_without_the_store_is_waited_out(store: BlobStore) -> None:
    clock = Clock()
    ref = patient(store, clock, 60).put(b"content", "text/plain")
    assert store.read(ref.sha256) == b"content"
    # waits of 0.5 1 2 4 8 10 10 10 10 10 seconds: the tenth ends at 65.5
    assert clock.now == 65.5
    later = Clock()
    waiting = patient(store, later, 60)
    assert waiting.read(ref.sha256) == b"content"
    assert waiting.open(ref.sha256).read() == b"content"
    assert later.now == 65.5


def test_a_file_is_sent_again_from_where_it_stood(store: BlobStore) -> None:
    file = io.BytesIO(b"head and body")
    file.seek(9)
    ref = patient(store, Clock(), 3).put(file, "text/plain")
    assert store.read(ref.sha256) == b"body"


def test_what_can_be_read_once_is_tried_once(store: BlobStore) -> None:
    def source() -> Iterator[bytes]:
        yield b"once"

    clock = Clock()
    with pytest.raises(BlobStoreUnavailableError, match="away"):
        patient(store, clock, 3).put(source(), "text/plain")
    assert clock.now == 0


def test_patience_ends(store: BlobStore) -> None:
    clock = Clock()
    with pytest.raises(BlobStoreUnavailableError, match="away"):
        patient(store, clock, 10_000).read("0" * 64)
    assert 100 < clock.now <= 120
