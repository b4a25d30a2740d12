"""Reads and checks uploaded pictures: a zip of `<split>/<label>/<file>` or `<label>/<file>`.

The backend refuses a bad archive with it before anything is stored, and the worker reads the same
bytes with it before training. Nothing is ever unpacked to a disk: pictures are read by name from
the archive. Only headers of pictures are looked at here, which needs no imaging library.
"""

import hashlib
import io
import stat
import struct
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import IO

from backend.contracts.datasets import SPLITS, Example, Split
from backend.contracts.json_lines import MAX_LABELS

MAX_PICTURES = 20_000
MAX_PICTURE_BYTES = 10 * 2**20
MAX_TOTAL_BYTES = 512 * 2**20
"""Of all pictures together, unpacked."""
MAX_RATIO = 100
"""Unpacked by packed size; PNG and JPEG are packed already, so honest archives are near 1."""
MAX_SIDE = 8192
"""Pixels."""
SUFFIXES = (".png", ".jpg", ".jpeg")

_IGNORED = ("__MACOSX",)
_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG = b"\xff\xd8\xff"
_LAST_BUCKET: tuple[tuple[Split, int], ...] = (("train", 80), ("validation", 90), ("test", 100))


class ImageArchiveError(ValueError):
    """The archive cannot be used; the text names file, problem and remedy."""

    def __init__(self, problem: str, *, file: str | None = None) -> None:
        super().__init__(problem if file is None else f"File {file[:200]!r}: {problem}")
        self.file = file


@dataclass(frozen=True, slots=True)
class _Picture:
    """Where an entry belongs; `split` is None where the folders do not say."""

    entry: zipfile.ZipInfo
    split: Split | None
    label: str


def parse_image_archive(content: IO[bytes]) -> list[Example]:
    """All pictures of an archive as examples: question = name in the archive, answer = label.

    Without folders `train`, `validation` and `test`, pictures are split 80/10/10 by a hash of their
    bytes, so that the same picture lands in the same split in every upload. One folder around
    everything is allowed.

    Args:
        content: the zip, as a file in which one can go back and forth.

    Raises:
        ImageArchiveError: no zip, too large, an entry that leaves the archive or is no PNG or JPEG,
            the same picture in two splits, fewer than two labels, or nothing to train or test on.
    """
    try:
        with zipfile.ZipFile(content) as archive:
            return _examples(archive)
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError) as error:
        raise ImageArchiveError(
            f"the archive cannot be read ({error}). Make a plain .zip without a password."
        ) from error


def _examples(archive: zipfile.ZipFile) -> list[Example]:
    pictures = _arranged(_entries(archive))
    examples, first = [], dict[str, tuple[str, Split]]()
    for picture in pictures:
        name = picture.entry.filename
        digest = _checked(archive, picture.entry)
        split = picture.split or _split_by_hash(digest)
        earlier, other = first.setdefault(digest, (name, split))
        if other != split:
            raise ImageArchiveError(
                f"the same picture is in split {split!r} here and in {other!r} as {earlier!r}. "
                "Keep it in one split, or accuracy means nothing.",
                file=name,
            )
        examples.append(Example(question=name, answer=picture.label, split=split))
    _require_parts(examples)
    return sorted(examples, key=lambda example: (SPLITS.index(example.split), example.question))


def _entries(archive: zipfile.ZipFile) -> Iterator[zipfile.ZipInfo]:
    """Files of the archive, after everything that can be refused by its table of contents."""
    num_pictures, total, seen = 0, 0, set[str]()
    for entry in archive.infolist():
        name = entry.filename
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or "\\" in name or ":" in name:
            raise ImageArchiveError("the name leads out of the archive. Remove it.", file=name)
        if stat.S_ISLNK(entry.external_attr >> 16):
            raise ImageArchiveError("a link instead of a picture. Replace it.", file=name)
        if entry.is_dir() or path.parts[0] in _IGNORED or path.name.startswith("."):
            continue
        if name in seen:
            raise ImageArchiveError("the name occurs twice. Rename one.", file=name)
        seen.add(name)
        num_pictures, total = num_pictures + 1, total + entry.file_size
        if num_pictures > MAX_PICTURES or total > MAX_TOTAL_BYTES:
            raise ImageArchiveError(
                f"more than {MAX_PICTURES} pictures or {MAX_TOTAL_BYTES} bytes unpacked. Give "
                "fewer or smaller pictures.",
                file=name,
            )
        if entry.file_size > MAX_PICTURE_BYTES:
            raise ImageArchiveError(
                f"{entry.file_size} bytes, the limit is {MAX_PICTURE_BYTES}. Make it smaller.",
                file=name,
            )
        if entry.file_size > MAX_RATIO * max(1, entry.compress_size):
            raise ImageArchiveError(
                f"packed more than {MAX_RATIO} to 1, as no real picture is. Store it again as PNG "
                "or JPEG.",
                file=name,
            )
        if path.suffix.lower() not in SUFFIXES:
            raise ImageArchiveError(
                f"neither {' nor '.join(SUFFIXES)}. Remove it, or convert it.", file=name
            )
        yield entry


def _arranged(entries: Iterator[zipfile.ZipInfo]) -> list[_Picture]:
    """Split and label of each entry, from the folders it lies in."""
    found = [(entry, PurePosixPath(entry.filename).parts) for entry in entries]
    tops = {parts[0] for _, parts in found}
    if len(tops) == 1 and not tops & set(SPLITS) and all(len(p) > 2 for _, p in found):
        found = [(entry, parts[1:]) for entry, parts in found]
        tops = {parts[0] for _, parts in found}
    has_splits = bool(tops) and tops <= set(SPLITS)
    depth = 3 if has_splits else 2
    pictures = []
    for entry, parts in found:
        if len(parts) != depth:
            raise ImageArchiveError(
                "lies in another depth of folders than it should. Put every picture into "
                "`<label>/`, or every one into `train/<label>/`, `validation/<label>/` or "
                "`test/<label>/`.",
                file=entry.filename,
            )
        split = next((name for name in SPLITS if name == parts[0]), None) if has_splits else None
        pictures.append(_Picture(entry, split, parts[-2]))
    return pictures


def _checked(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> str:
    """SHA-256 of a picture after its header was looked at."""
    with archive.open(entry) as stream:
        # A size that lies in the table of contents ends here, not in memory.
        data = stream.read(MAX_PICTURE_BYTES + 1)
    if len(data) != entry.file_size:
        raise ImageArchiveError("its size is not what the archive says.", file=entry.filename)
    width, height = _size(data, entry.filename)
    if not (0 < width <= MAX_SIDE and 0 < height <= MAX_SIDE):
        raise ImageArchiveError(
            f"{width} x {height} pixels, the limit is {MAX_SIDE} a side. Make it smaller.",
            file=entry.filename,
        )
    return hashlib.sha256(data).hexdigest()


def _size(data: bytes, name: str) -> tuple[int, int]:
    """Width and height in pixels, from the header alone."""
    if data.startswith(_PNG) and len(data) >= 24:
        width, height = struct.unpack(">II", data[16:24])
        return width, height
    if data.startswith(_JPEG):
        found = _jpeg_size(io.BytesIO(data[2:]))
        if found:
            return found
    raise ImageArchiveError(
        "the content is no PNG or JPEG, whatever its name says. Store it again.", file=name
    )


def _jpeg_size(stream: IO[bytes]) -> tuple[int, int] | None:
    """Goes through the segments of a JPEG to the one that starts the frame."""
    while len(head := stream.read(4)) == 4 and head[0] == 0xFF:
        marker, length = head[1], int.from_bytes(head[2:], "big")
        if 0xC0 <= marker <= 0xCF and marker not in {0xC4, 0xC8, 0xCC}:
            frame = stream.read(5)
            height, width = struct.unpack(">xHH", frame) if len(frame) == 5 else (0, 0)
            return width, height
        if length < 2:
            return None
        stream.seek(length - 2, io.SEEK_CUR)
    return None


def _split_by_hash(digest: str) -> Split:
    percent = int(digest[:16], 16) % 100
    return next(split for split, limit in _LAST_BUCKET if percent < limit)


def _require_parts(examples: list[Example]) -> None:
    labels = {example.answer for example in examples}
    if not 2 <= len(labels) <= MAX_LABELS:
        raise ImageArchiveError(
            f"there are {len(labels)} labels (folders with pictures), needed are 2 to {MAX_LABELS}."
        )
    present = {example.split for example in examples}
    for split in ("train", "test"):
        if split not in present:
            raise ImageArchiveError(
                f"no picture of {len(examples)} is in split {split!r}. Add pictures, or folders "
                "`train/<label>/` and `test/<label>/`."
            )
    unknown = labels - {example.answer for example in examples if example.split == "train"}
    if unknown:
        raise ImageArchiveError(
            f"label {min(unknown)!r} has no training picture. Add some, or remove the label."
        )
