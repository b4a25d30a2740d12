"""What is accepted as an archive of pictures, and what each refusal says."""

import io
import stat
import struct
import zipfile
import zlib
from collections import Counter

import pytest

from backend.contracts import image_archive
from backend.contracts.datasets import Example
from backend.contracts.image_archive import ImageArchiveError, parse_image_archive


def png(number: int, width: int = 8, height: int = 8) -> bytes:
    """A grey picture; `number` makes it different from others."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + checksum

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    rows = b"".join(b"\0" + bytes([number % 251] * 8) for _ in range(8))
    note = chunk(b"tEXt", b"n\0" + str(number).encode())
    body = chunk(b"IHDR", header) + note + chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + body + chunk(b"IEND", b"")


def jpeg(width: int, height: int) -> bytes:
    """Headers only, which is all that is looked at: an APP0 segment, then the frame."""
    app = b"\xff\xe0" + struct.pack(">H", 16) + bytes(14)
    frame = b"\xff\xc2" + struct.pack(">HBHH", 11, 8, height, width) + bytes(4)
    return b"\xff\xd8" + app + frame


def packed(files: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return buffer.getvalue()


GOOD = {
    "train/cat/1.png": png(1),
    "train/dog/2.PNG": png(2),
    "validation/dog/3.jpg": jpeg(20, 30),
    "test/cat/4.jpeg": jpeg(40, 30),
}


def parsed(content: bytes) -> list[Example]:
    return parse_image_archive(io.BytesIO(content))


def test_folders_say_split_and_label() -> None:
    examples = parsed(packed(GOOD))
    assert [(e.split, e.answer, e.question) for e in examples] == [
        ("train", "cat", "train/cat/1.png"),
        ("train", "dog", "train/dog/2.PNG"),
        ("validation", "dog", "validation/dog/3.jpg"),
        ("test", "cat", "test/cat/4.jpeg"),
    ]


def test_one_folder_around_everything_and_leftovers_of_systems_are_fine() -> None:
    files = {f"pets/{name}": data for name, data in GOOD.items()}
    files |= {"__MACOSX/pets/x": b"", "pets/train/cat/.DS_Store": b"x"}
    assert len(parsed(packed(files))) == 4


def test_without_splits_the_bytes_decide() -> None:
    files = {f"{'ab'[n % 2]}/{n}.png": png(n) for n in range(300)}
    examples = parsed(packed(files))
    counts = Counter(example.split for example in examples)
    assert counts["train"] > 200
    assert min(counts["validation"], counts["test"]) > 10
    renamed = {f"{'ab'[n % 2]}/other-{n}.png": png(n) for n in range(300)}
    again = parsed(packed(renamed))
    assert {e.question.replace("other-", ""): e.split for e in again} == {
        e.question: e.split for e in examples
    }


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"../escape.png": png(9)}, r"'\.\./escape\.png'.*leads out"),
        ({"/etc/x.png": png(9)}, "leads out"),
        ({"train\\cat\\x.png": png(9)}, "leads out"),
        ({"train/cat/notes.txt": b"x"}, r"'train/cat/notes\.txt'.*neither \.png"),
        ({"train/x.png": png(9)}, r"'train/x\.png'.*another depth"),
        ({"train/cat/x.png": b"GIF89a" + bytes(40)}, r"'train/cat/x\.png'.*no PNG or JPEG"),
        ({"train/cat/x.png": png(9, width=9000)}, "9000 x 8 pixels"),
        ({"train/cat/x.jpg": jpeg(20_000, 20_000)}, "20000 x 20000 pixels"),
        ({"test/cat/same.png": png(1)}, "same picture is in split 'test'.*'train/cat/1.png'"),
        ({"test/bird/5.png": png(5)}, "'bird' has no training picture"),
    ],
)
def test_refusals_name_the_file(changes: dict[str, bytes], problem: str) -> None:
    with pytest.raises(ImageArchiveError, match=problem):
        parsed(packed(GOOD | changes))


def test_bombs_are_refused_before_they_are_unpacked(monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = packed(GOOD | {"train/cat/bomb.png": bytes(9 * 2**20)}, zipfile.ZIP_DEFLATED)
    with pytest.raises(ImageArchiveError, match=r"bomb\.png'.*packed more than 100 to 1"):
        parsed(bomb)
    with pytest.raises(ImageArchiveError, match=r"big\.png'.*the limit is"):
        parsed(packed(GOOD | {"train/cat/big.png": bytes(11 * 2**20)}))
    monkeypatch.setattr(image_archive, "MAX_TOTAL_BYTES", 200)
    with pytest.raises(ImageArchiveError, match="200 bytes unpacked"):
        parsed(packed(GOOD))
    monkeypatch.setattr(image_archive, "MAX_PICTURES", 3)
    with pytest.raises(ImageArchiveError, match="more than 3 pictures"):
        parsed(packed(GOOD))


def test_links_passwords_and_broken_archives_are_refused() -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        link = zipfile.ZipInfo("train/cat/link.png")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "/etc/passwd")
    with pytest.raises(ImageArchiveError, match=r"link\.png'.*a link"):
        parsed(buffer.getvalue())
    with pytest.raises(ImageArchiveError, match="cannot be read"):
        parsed(b"no zip")
    damaged = bytearray(packed(GOOD))
    damaged[60] ^= 0xFF  # within the first picture: its checksum is wrong now
    with pytest.raises(ImageArchiveError, match="cannot be read"):
        parsed(bytes(damaged))


def test_a_task_needs_two_labels_and_something_to_test_on() -> None:
    cats = {name: data for name, data in GOOD.items() if "dog" not in name}
    with pytest.raises(ImageArchiveError, match="there are 1 labels"):
        parsed(packed(cats))
    untested = {name: data for name, data in GOOD.items() if "test" not in name}
    with pytest.raises(ImageArchiveError, match="no picture of 3 is in split 'test'"):
        parsed(packed(untested))
    with pytest.raises(ImageArchiveError, match="there are 0 labels"):
        parsed(packed({}))
