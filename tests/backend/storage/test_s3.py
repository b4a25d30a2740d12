"""The blob store over a real S3 protocol: moto's server in a process of its own, over HTTP."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from uuid import uuid4

import httpx
import pytest

from backend.storage import (
    BlobMissingError,
    BlobStore,
    BlobStoreUnavailableError,
    open_blob_store,
)
from tests.running_platform import free_port
from tests.serving import use_s3


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    process = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "--host", "127.0.0.1", "--port", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and not _answers(url):
            assert process.poll() is None, "moto's server ended by itself"
            time.sleep(0.1)
        yield url
    finally:
        process.terminate()
        process.wait(10)


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/moto-api/data.json", timeout=2).is_success
    except httpx.TransportError:
        return False


@pytest.fixture
def store(server: str, monkeypatch: pytest.MonkeyPatch) -> BlobStore:
    use_s3(monkeypatch, server)
    bucket = f"bucket-{uuid4()}"
    httpx.put(f"{server}/{bucket}").raise_for_status()
    return open_blob_store(f"s3://{bucket}/some/prefix")


@pytest.mark.parametrize("size", [0, 1, 17 * 2**20 + 3])  # the last one in several parts
def test_what_is_put_is_read_back(store: BlobStore, size: int) -> None:
    content = os.urandom(size)
    ref = store.put(content, "application/octet-stream")
    assert ref.size_bytes == size
    assert store.exists(ref.sha256)
    assert store.read(ref.sha256) == content
    assert store.put(content, "application/octet-stream") == ref
    with store.open(ref.sha256) as stream:
        assert stream.read() == content


def test_a_deleted_blob_is_gone(store: BlobStore) -> None:
    ref = store.put(b"short lived", "text/plain")
    store.delete(ref.sha256)
    store.delete(ref.sha256)
    assert not store.exists(ref.sha256)
    with pytest.raises(BlobMissingError):
        store.read(ref.sha256)


def test_a_bucket_that_does_not_exist_is_named(store: BlobStore) -> None:
    elsewhere = open_blob_store("s3://no-such-bucket/prefix")
    with pytest.raises(BlobStoreUnavailableError):
        elsewhere.put(b"x", "text/plain")
