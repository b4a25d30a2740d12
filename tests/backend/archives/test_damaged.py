"""Archives that were damaged, forged or packed anew: refused with a sentence, and nothing stays."""

import copy
import hashlib
import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from backend.archives.importing import import_archive
from backend.archives.manifest import MANIFEST, ArchiveError
from backend.auth.principals import SystemPrincipal
from backend.contracts.probe_sets import MAX_BODY_BYTES, MIN_TEXTS, encode_probe_set
from backend.db.base import Base
from backend.db.session import SessionFactory
from backend.settings import Settings
from backend.storage import BlobStore, open_blob_store
from tests.backend.archives.test_round_trip import Original, export
from tests.backend.rows import add_user

Files = dict[str, bytes]


@pytest.fixture
def store(tmp_path: Path) -> BlobStore:
    return open_blob_store((tmp_path / "blobs").as_uri())


def unpacked(archive: bytes) -> Files:
    with zipfile.ZipFile(io.BytesIO(archive)) as contents:
        return {name: contents.read(name) for name in contents.namelist()}


def packed(files: Files, compression: int = zipfile.ZIP_STORED) -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", compression) as contents:
        for name, data in files.items():
            contents.writestr(zipfile.ZipInfo(name), data, compress_type=compression)
    return target.getvalue()


def forged(files: Files) -> Files:
    """With a manifest that fits what was changed."""
    manifest = json.loads(files[MANIFEST])
    manifest["entries"] = [
        {
            "name": name,
            "size_bytes": len(data),
            "sha256": hashlib.sha256(data).hexdigest(),
        }
        for name, data in files.items()
        if name != MANIFEST
    ]
    return files | {MANIFEST: json.dumps(manifest).encode()}


def flip_a_byte_of_a_blob(files: Files) -> bytes:
    name = next(name for name in files if name.startswith("blobs/"))
    return packed(files | {name: bytes([files[name][0] ^ 1]) + files[name][1:]})


def put_other_bytes_under_a_hash(files: Files) -> bytes:
    name = next(name for name in files if name.startswith("blobs/"))
    return packed(forged(files | {name: b"others"}))


def cut_off_the_end(files: Files) -> bytes:
    return packed(files)[:-100]


def leave_a_table_out(files: Files) -> bytes:
    return packed(forged({name: data for name, data in files.items() if "metrics" not in name}))


def add_a_path(files: Files) -> bytes:
    return packed(forged(files | {"../../etc/evil": b"x"}))


def add_a_file_that_the_manifest_does_not_have(files: Files) -> bytes:
    return packed(files | {f"blobs/{'0' * 64}": b"x"})


def compress_it(files: Files) -> bytes:
    return packed(files, zipfile.ZIP_DEFLATED)


def let_two_files_share_their_bytes(files: Files) -> bytes:
    """A zip bomb without compression: many names in the directory for the same bytes."""
    target = io.BytesIO(packed(files))
    with zipfile.ZipFile(target, "a") as contents:
        large = max(contents.infolist(), key=lambda info: info.file_size)
        for number in range(20):
            alias = copy.copy(large)
            alias.filename = f"blobs/{number:064x}"
            contents.filelist.append(alias)
        contents.comment = b"so that the directory is written anew"
    return target.getvalue()


def write_it_in_the_future(files: Files) -> bytes:
    manifest = json.loads(files[MANIFEST]) | {"schema_revision": "9999"}
    return packed(files | {MANIFEST: json.dumps(manifest).encode()})


def spoil_json(files: Files) -> bytes:
    return packed(forged(files | {"tables/runs.jsonl": b"{\n"}))


def add_a_field(files: Files) -> bytes:
    line = files["tables/metrics.jsonl"].replace(b"{", b'{"id":1,', 1)
    return packed(forged(files | {"tables/metrics.jsonl": line}))


def change(table: str, field: str, value: object) -> Callable[[Files], bytes]:
    def do(files: Files) -> bytes:
        name = f"tables/{table}.jsonl"
        first, *rest = files[name].splitlines(keepends=True)
        row = json.loads(first) | {field: value}
        return packed(forged(files | {name: b"".join([json.dumps(row).encode() + b"\n", *rest])}))

    return do


def call_a_state_a_probe_set(files: Files) -> bytes:
    sha256 = json.loads(files["tables/runs.jsonl"].splitlines()[0])["state_sha256"]
    return change("federations", "probe_set_sha256", sha256)(files)


def pad_a_probe_set(files: Files) -> bytes:
    """Texts that can be read, with more beside them than anybody could upload."""
    rows = encode_probe_set(f"text {number}" for number in range(MIN_TEXTS))
    content = rows[:-2] + b', "pad": "' + b"x" * MAX_BODY_BYTES + b'"}\n'
    sha256 = hashlib.sha256(content).hexdigest()
    spoil = change("federations", "probe_set_sha256", sha256)
    return spoil(files | {f"blobs/{sha256}": content})


FOREIGN = "01234567-89ab-7cde-8f01-23456789abcd"


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (flip_a_byte_of_a_blob, "is damaged"),
        (put_other_bytes_under_a_hash, "is damaged"),
        (cut_off_the_end, "no whole zip file"),
        (leave_a_table_out, r"differ \(tables/metrics.jsonl\)"),
        (add_a_path, r"'\.\./\.\./etc/evil', which belongs to no archive"),
        (add_a_file_that_the_manifest_does_not_have, "differ"),
        (compress_it, "compressed or encrypted"),
        (let_two_files_share_their_bytes, "overlap"),
        (write_it_in_the_future, "newer than this one. Update this platform"),
        (spoil_json, "tables/runs.jsonl line 1 is not JSON"),
        (add_a_field, "tables/metrics.jsonl line 1 has the field 'id'"),
        (change("runs", "strategy", {"name": "evil"}), "runs.jsonl line 1: strategy"),
        (change("runs", "status", "flying"), "runs.jsonl line 1: status"),
        (change("rounds", "run_id", FOREIGN), f"run_id is {FOREIGN}, which the archive does not"),
        (change("metrics", "client_id", FOREIGN), "client_id is"),
        (change("runs", "state_sha256", "0" * 64), "state_sha256 is 000"),
        (change("clients", "dataset", {"source": "uploaded", "format": "json_lines",
            "sha256": "0" * 64, "num_train": 1, "num_validation": 0, "num_test": 1}),
            "dataset names bytes"),
        (change("runs", "probe_set_sha256", "0" * 64), "probe_set_sha256 is 000"),
        (call_a_state_a_probe_set, "The probe set .* of the archive: Line 1: .* is not valid JSON"),
        (pad_a_probe_set, "The probe set .* of the archive has 16778.* bytes, and 16777216"),
        (change("clients", "base_model", {"source": "folder", "id": "/etc"}), "folder"),
        (change("rounds", "round_number", None), "rounds.jsonl line 1: round_number"),
    ],
)  # fmt: skip
def test_nothing_of_it_stays(
    session: Session,
    session_factory: SessionFactory,
    store: BlobStore,
    spoil: Callable[[Files], bytes],
    sentence: str,
) -> None:
    archive = spoil(unpacked(export(session_factory, Original(session, store))))
    owner = add_user(session)
    session.commit()

    def counts() -> dict[str, int | None]:
        with session_factory() as fresh:
            return {
                table.name: fresh.scalar(select(func.count()).select_from(table))
                for table in Base.metadata.sorted_tables
            }

    before = counts()
    with pytest.raises(Exception, match=sentence) as refused:
        import_archive(
            session_factory, store, Settings(), io.BytesIO(archive), SystemPrincipal(), owner.id
        )
    assert isinstance(refused.value, ArchiveError) or "folder" in sentence
    assert counts() == before


def test_an_archive_never_unpacks_to_more_than_itself(
    session: Session, session_factory: SessionFactory, store: BlobStore
) -> None:
    """A bomb needs compression, overlap or a lying header; stored entries leave only the latter."""
    archive = export(session_factory, Original(session, store))
    with zipfile.ZipFile(io.BytesIO(archive)) as contents:
        total = sum(info.file_size for info in contents.infolist())
        assert all(info.compress_type == zipfile.ZIP_STORED for info in contents.infolist())
    assert total < len(archive)
