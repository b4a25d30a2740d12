"""Opening an archive that somebody sent: nothing in it is believed before it is checked."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from io import SEEK_END
from typing import BinaryIO
from zipfile import ZIP_STORED, BadZipFile, ZipFile, ZipInfo

from pydantic import ValidationError

from backend.archives.manifest import (
    BLOB,
    CHUNK_BYTES,
    FORMAT_VERSION,
    MANIFEST,
    MAX_LINE_BYTES,
    MAX_MANIFEST_BYTES,
    TABLE,
    ArchiveError,
    Entry,
    Manifest,
    blob_entry,
    table_entry,
)
from backend.archives.tables import TABLES, Row, exported, from_line
from backend.db.migrate import knows_revision

_ENCRYPTED = 0x1


class Archive:
    """An archive whose names, sizes and hashes are those of its manifest.

    Attributes:
        manifest: the table of contents.
    """

    def __init__(self, contents: ZipFile, manifest: Manifest) -> None:
        self._contents = contents
        self.manifest = manifest

    def rows(self, table: str) -> Iterator[tuple[str, Row]]:
        """Where a row stands, for messages, and the row with every value checked.

        Raises:
            ArchiveError: a line is no row of this table.
        """
        name = table_entry(table)
        described = exported(table)
        with self._contents.open(name) as file:
            number = 0
            while line := file.readline(MAX_LINE_BYTES + 1):
                number += 1
                where = f"{name} line {number}"
                if len(line) > MAX_LINE_BYTES:
                    raise ArchiveError(f"{where} is longer than {MAX_LINE_BYTES} bytes.")
                yield where, from_line(described, line, where)

    def blobs(self) -> Iterator[str]:
        """Hashes of the blobs that the archive holds."""
        for entry in self.manifest.entries:
            match = BLOB.fullmatch(entry.name)
            if match is not None:
                yield match.group(1)

    @contextmanager
    def open_blob(self, sha256: str) -> Iterator[BinaryIO]:
        """The bytes of a blob that the archive holds."""
        with self._contents.open(blob_entry(sha256)) as file:
            yield file  # type: ignore[misc]  # ZipExtFile reads like any binary file


@contextmanager
def open_archive(file: BinaryIO) -> Iterator[Archive]:
    """An archive, whole and undamaged; every byte of it is read once, none is kept.

    Args:
        file: at any place; must allow going back and forth.

    Raises:
        ArchiveError: no zip, other files than those of an archive, compressed or encrypted ones,
            a newer version, or bytes whose size or hash the manifest does not give.
    """
    try:
        size_bytes = file.seek(0, SEEK_END)
        with ZipFile(file) as contents:
            infos = _named(contents)
            if sum(info.file_size for info in infos.values()) > size_bytes:
                raise ArchiveError("Files of the archive overlap. Export the federation again.")
            manifest = _manifest(contents, infos)
            for entry in manifest.entries:
                _verify(contents, infos[entry.name], entry)
            yield Archive(contents, manifest)
    except BadZipFile as error:
        raise ArchiveError(
            f"This is no whole zip file ({error}). Export the federation again, or copy the "
            "archive again."
        ) from error


def _named(contents: ZipFile) -> dict[str, ZipInfo]:
    infos: dict[str, ZipInfo] = {}
    for info in contents.infolist():
        name = info.filename
        is_ours = name == MANIFEST or _table(name) in TABLES or BLOB.fullmatch(name)
        if not is_ours or name in infos:
            raise ArchiveError(
                f"The archive holds {name[:200]!r}, which "
                f"{'is there twice' if is_ours else 'belongs to no archive of a federation'}."
            )
        is_plain = info.compress_type == ZIP_STORED and info.file_size == info.compress_size
        if not is_plain or info.flag_bits & _ENCRYPTED:
            raise ArchiveError(
                f"{name} is compressed or encrypted; archives hold their files as they are. Do not "
                "pack an archive anew."
            )
        infos[name] = info
    return infos


def _table(name: str) -> str:
    match = TABLE.fullmatch(name)
    return match.group(1) if match else ""


def _manifest(contents: ZipFile, infos: dict[str, ZipInfo]) -> Manifest:
    info = infos.get(MANIFEST)
    if info is None or info.file_size > MAX_MANIFEST_BYTES:
        raise ArchiveError(f"The archive has no {MANIFEST}. Export the federation again.")
    try:
        manifest = Manifest.model_validate_json(contents.read(info))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or MANIFEST
        raise ArchiveError(f"{MANIFEST}: {where}: {first['msg']}.") from error
    is_newer = manifest.format_version > FORMAT_VERSION
    if is_newer or not knows_revision(manifest.schema_revision):
        raise ArchiveError(
            f"The archive was written by version {manifest.platform_version} (format "
            f"{manifest.format_version}, schema {manifest.schema_revision}), which is newer than "
            "this one. Update this platform first."
        )
    named = {entry.name for entry in manifest.entries} | {MANIFEST}
    missing = named.symmetric_difference(infos) | ({*map(table_entry, TABLES)} - named)
    if missing or len(named) != len(manifest.entries) + 1:
        raise ArchiveError(
            f"{MANIFEST} and the files of the archive differ ({', '.join(sorted(missing)[:3])}). "
            "Export the federation again."
        )
    return manifest


def _verify(contents: ZipFile, info: ZipInfo, entry: Entry) -> None:
    digest, size_bytes = hashlib.sha256(), 0
    if info.file_size == entry.size_bytes:
        with contents.open(info) as file:
            while chunk := file.read(CHUNK_BYTES):
                digest.update(chunk)
                size_bytes += len(chunk)
    blob = BLOB.fullmatch(entry.name)
    names = {entry.sha256} if blob is None else {entry.sha256, blob.group(1)}
    if size_bytes != entry.size_bytes or names != {digest.hexdigest()}:
        raise ArchiveError(
            f"{entry.name} is damaged: its size or its SHA-256 is not that of {MANIFEST}. Copy the "
            "archive again, or export the federation again."
        )
