"""Folders that belong to one process at a time."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from backend.local.errors import FolderInUseError


@contextmanager
def hold_folder(folder: Path) -> Iterator[None]:
    """Makes a folder, private to its owner, and keeps every other process from holding it.

    The lock ends with the process, however it ends.

    Raises:
        FolderInUseError: another process holds it; the message has its process id.
    """
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    with (folder / "lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise FolderInUseError(
                f"process {lock.read().strip() or '(unknown)'} uses {folder}: "
                "stop it first, or choose another folder with FEDBRAID_HOME"
            ) from None
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        yield
