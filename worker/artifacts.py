"""Values of the core as blobs: encoded by `worker.federated.wire`, stored by their hash.

Bytes go to the store first and their row second, so a row that is seen always has its bytes; a
crash in between leaves an unreferenced blob and nothing else.
"""

import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

from backend.contracts.probe_sets import ProbeSetError, decode_probe_set
from backend.db.models import Run
from backend.storage.blobs import Content
from backend.storage.records import add_blob_row
from worker.federated import wire
from worker.federated.errors import FederatedError, InvalidUpdateError
from worker.federated.types import ClientPlan, ClientSpec, ClientUpdate, ServerState, Tensors
from worker.platform import Platform

TENSORS = "application/vnd.safetensors"
ARCHIVE = "application/zip"
CHUNK_BYTES = 2**20


def save_state(platform: Platform, state: ServerState) -> str:
    """Stores a server state; gives the blob's SHA-256, as all `save_*` do."""
    return _save(platform, wire.encode_state(state), TENSORS)


def load_state(platform: Platform, sha256: str) -> ServerState:
    """A stored server state."""
    return wire.decode_state(platform.store.read(sha256))


def save_plan(platform: Platform, plan: ClientPlan) -> str:
    """Stores what a client receives in a round."""
    return _save(platform, wire.encode_plan(plan), TENSORS)


def load_plan(platform: Platform, sha256: str) -> ClientPlan:
    """A stored plan."""
    return wire.decode_plan(platform.store.read(sha256))


def save_update(platform: Platform, update: ClientUpdate) -> str:
    """Stores the shared half of an update: all that leaves the client."""
    return _save(platform, wire.encode_update(update), TENSORS)


def load_update(
    platform: Platform, sha256: str, spec: ClientSpec, round_number: int
) -> ClientUpdate:
    """A stored update, checked to be this client's, of this round, and of its declared weight.

    Raises:
        WireError: the bytes are no update.
        InvalidUpdateError: it is somebody else's, of another round, or states another number of
            examples; or it holds NaN or infinity.
    """
    update = wire.decode_update(platform.store.read(sha256))
    if (update.client_id, update.round_number) != (spec.client_id, round_number):
        raise InvalidUpdateError(
            f"The update stored for {spec.name} in round {round_number} is of client "
            f"{update.client_id!r} in round {update.round_number}. Start a new run."
        )
    if update.num_examples != spec.num_examples:
        raise InvalidUpdateError(
            f"The update of {spec.name} states {update.num_examples} training rows, but "
            f"{spec.num_examples} are registered. Register the client anew with its present data."
        )
    return update


def save_private(platform: Platform, private: Tensors) -> str:
    """Stores what a managed client keeps for itself; no strategy's aggregation reads it."""
    return _save(platform, wire.encode_private(private), TENSORS)


def load_private(platform: Platform, sha256: str) -> Tensors:
    """What a managed client kept."""
    return wire.decode_private(platform.store.read(sha256))


def save_adapter(platform: Platform, folder: Path) -> str:
    """Stores the files of an adapter folder as one archive; equal files give equal bytes."""
    with tempfile.TemporaryFile() as spool:
        with zipfile.ZipFile(spool, "w", zipfile.ZIP_STORED) as archive:
            for path in sorted(path for path in folder.rglob("*") if path.is_file()):
                entry = zipfile.ZipInfo(path.relative_to(folder).as_posix())  # a fixed date, 1980
                entry.file_size = path.stat().st_size  # decides between zip and zip64
                with path.open("rb") as source, archive.open(entry, "w") as target:
                    shutil.copyfileobj(source, target, CHUNK_BYTES)
        spool.seek(0)
        return _save(platform, cast(BinaryIO, spool), ARCHIVE)


def load_probes(platform: Platform, run: Run) -> tuple[str, ...]:
    """The probe texts with which a run was made; none: the built-in ones.

    Raises:
        FederatedError: the stored bytes are none.
    """
    if run.probe_set_sha256 is None:
        return ()
    try:
        return tuple(decode_probe_set(platform.store.read(run.probe_set_sha256)))
    except ProbeSetError as error:
        raise FederatedError(
            f"The probe set {run.probe_set_sha256} of the run cannot be read: {error} Upload one "
            "for the federation, then make a new run."
        ) from error


@contextmanager
def open_dataset(platform: Platform, sha256: str) -> Iterator[BinaryIO]:
    """An uploaded data set as a binary file."""
    with platform.store.open(sha256) as stream:
        yield stream


def _save(platform: Platform, data: Content, media_type: str) -> str:
    ref = platform.store.put(data, media_type)
    with platform.session_factory() as session:
        add_blob_row(session, platform.store, ref)
        session.commit()
    return ref.sha256
