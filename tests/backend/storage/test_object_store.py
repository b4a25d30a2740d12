"""The blob store over a folder: addresses, streaming, verification, failures."""

import hashlib
import io
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from backend.storage import (
    BlobCorruptedError,
    BlobMissingError,
    BlobStore,
    BlobStoreUnavailableError,
    open_blob_store,
)

MEBIBYTE = 2**20


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "blobs"


@pytest.fixture
def store(folder: Path) -> BlobStore:
    return open_blob_store(folder.as_uri())


def files(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def test_bytes_lie_under_their_sha256(store: BlobStore, folder: Path) -> None:
    ref = store.put(b"abc", "text/plain")
    # SHA-256 of "abc", from FIPS 180-2, appendix B.1
    assert ref.sha256 == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert (ref.size_bytes, ref.media_type) == (3, "text/plain")
    assert files(folder) == [f"{ref.sha256[:2]}/{ref.sha256[2:]}"]
    assert store.read(ref.sha256) == b"abc"
    assert store.exists(ref.sha256)


@pytest.mark.parametrize("size", [0, 1, MEBIBYTE, 9 * MEBIBYTE + 1])
def test_every_way_to_put_gives_the_same_blob(store: BlobStore, folder: Path, size: int) -> None:
    content = os.urandom(size)
    chunks = [content[i : i + 70_000] for i in range(0, size, 70_000)]
    refs = [
        store.put(content, "application/zip"),
        store.put(io.BytesIO(content), "application/zip"),
        store.put(iter(chunks), "application/zip"),
    ]
    assert {ref.sha256 for ref in refs} == {hashlib.sha256(content).hexdigest()}
    assert {ref.size_bytes for ref in refs} == {size}
    assert len(files(folder)) == 1
    assert store.read(refs[0].sha256) == content


def test_a_failing_source_leaves_nothing(store: BlobStore, folder: Path) -> None:
    def source() -> Iterator[bytes]:
        yield b"x" * (9 * MEBIBYTE)
        raise RuntimeError("the sender went away")

    with pytest.raises(RuntimeError, match="went away"):
        store.put(source(), "application/zip")
    assert files(folder) == []


def test_an_open_blob_is_read_in_parts(store: BlobStore) -> None:
    content = os.urandom(3 * MEBIBYTE + 5)
    ref = store.put(content, "application/zip")
    with store.open(ref.sha256) as stream:
        assert stream.read(10) == content[:10]
        assert stream.read() == content[10:]
        assert stream.read() == b""


def test_changed_bytes_are_noticed_before_the_last_chunk_leaves(
    store: BlobStore, folder: Path
) -> None:
    content = os.urandom(3 * MEBIBYTE)
    ref = store.put(content, "application/zip")
    path = folder / ref.sha256[:2] / ref.sha256[2:]
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    received = b""
    with pytest.raises(BlobCorruptedError, match=ref.sha256), store.open(ref.sha256) as stream:
        while part := stream.read(65_536):
            received += part
    assert len(received) < len(content)
    with pytest.raises(BlobCorruptedError, match="backup"):
        store.read(ref.sha256)


def test_putting_again_heals_changed_bytes(store: BlobStore, folder: Path) -> None:
    ref = store.put(b"content", "text/plain")
    (folder / ref.sha256[:2] / ref.sha256[2:]).write_bytes(b"damage")
    store.put(b"content", "text/plain")
    assert store.read(ref.sha256) == b"content"


def test_a_missing_blob_is_named_at_once(store: BlobStore) -> None:
    sha256 = "0" * 64
    assert not store.exists(sha256)
    with pytest.raises(BlobMissingError, match=sha256):
        store.open(sha256)


def test_deleting_twice_is_harmless(store: BlobStore, folder: Path) -> None:
    ref = store.put(b"content", "text/plain")
    store.delete(ref.sha256)
    store.delete(ref.sha256)
    assert files(folder) == []


@pytest.mark.parametrize("name", ["../../etc/passwd", "A" * 64, "0" * 63, ""])
def test_only_hashes_are_names(store: BlobStore, name: str) -> None:
    with pytest.raises(ValueError, match="SHA-256"):
        store.exists(name)


@pytest.mark.parametrize("url", ["ftp://host/x", "/folder", "", "memory:///"])
def test_other_urls_are_refused(url: str) -> None:
    with pytest.raises(ValueError, match="file:///folder or s3://bucket/prefix"):
        open_blob_store(url)


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(BlobStoreUnavailableError, match="BLOB_URL"):
        open_blob_store((tmp_path / "file" / "blobs").as_uri())
