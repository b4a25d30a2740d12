"""Files that only their owner may read, and that appear whole or not at all."""

import os
import tempfile
from pathlib import Path

OWNER_FILE = 0o600
OWNER_FOLDER = 0o700


def write_file(path: Path, content: bytes) -> None:
    """Writes a file; after a power cut it is whole or the old one.

    Two writers of one file do not disturb each other: the last one to finish wins.

    Args:
        path: its folders are made where missing.
        content: of the file.
    """
    make_folder(path.parent)
    # Its mode is 0600 from the start, and its name nobody else's.
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    part = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def make_folder(folder: Path) -> None:
    """Makes a folder and those above it, as far as they are missing, for their owner only."""
    for missing in reversed([folder, *folder.parents]):
        if not missing.exists():
            missing.mkdir(mode=OWNER_FOLDER, exist_ok=True)
