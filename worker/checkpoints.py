"""How far the rounds are that this worker trains: files that never leave its machine.

    <worker folder>/checkpoints/<client update id>.safetensors

A client update is one client in one round of one run, so no other round ever finds the file.
Another worker of the same machine does, which is the point: it goes on where a killed one was.
"""

import logging
import time
from pathlib import Path
from uuid import UUID

from backend.settings import Settings
from worker.federated.checkpoint import Checkpointing
from worker.federated.errors import WireError
from worker.federated.types import Tensors
from worker.federated.wire import decode_private, encode_private
from worker.private_files import write_file

logger = logging.getLogger(__name__)

KEPT_SECONDS = 7 * 24 * 3600.0
"""What a cancelled or failed run left behind is removed when it is as old as this."""


class CheckpointFile:
    """The state within one client update.

    Args:
        settings: where, and how often.
        client_update_id: whose.
    """

    def __init__(self, settings: Settings, client_update_id: UUID) -> None:
        self._path = checkpoint_folder(settings) / f"{client_update_id}.safetensors"
        self._interval_seconds = settings.checkpoint_interval_seconds

    def checkpointing(self) -> Checkpointing:
        """Goes on from what an earlier attempt left here, and saves for a later one."""
        return Checkpointing(self._save, self._interval_seconds, self._load())

    def remove(self) -> None:
        """Forgets it, after the update was accepted."""
        self._path.unlink(missing_ok=True)

    def _save(self, tensors: Tensors) -> None:
        write_file(self._path, encode_private(tensors))

    def _load(self) -> Tensors | None:
        try:
            return decode_private(self._path.read_bytes())
        except FileNotFoundError:
            return None
        except WireError as error:
            logger.warning("checkpoint %s is ignored: %s", self._path.name, error)
            return None


def checkpoint_folder(settings: Settings) -> Path:
    """Where the checkpoints of this machine's workers lie."""
    return (settings.worker_folder or settings.home / "worker") / "checkpoints"


def remove_abandoned(settings: Settings) -> None:
    """Removes checkpoints that nobody has touched for `KEPT_SECONDS`."""
    oldest = time.time() - KEPT_SECONDS
    for path in checkpoint_folder(settings).glob("*.safetensors"):
        try:
            if path.stat().st_mtime < oldest:
                path.unlink()
        except FileNotFoundError:
            continue  # another worker was faster
