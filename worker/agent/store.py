"""The agent's own folder: what a client keeps between rounds, and what it has yet to hand in.

    <folder>/<client id>/<run id>/round-<n>/private.safetensors      kept for round n + 1
                                            checkpoint.safetensors   while round n trains
                                            shared.safetensors       sent to the platform
                                            result.json              written last: round n is done
                                            party.json               of a secure session, with it
                                            masked.safetensors       sent in place of `shared`
                                  adapter/                           delivered after the last round
                        lock                                         held by the agent at work
                        signing-key.pem                              with `run --sign`

Every file appears whole or not at all, and only its owner may read it (on POSIX systems).
"""

import fcntl
import hashlib
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

from pydantic import BaseModel, ValidationError

from backend.contracts.agent import Work
from backend.contracts.metrics import MetricName
from worker.agent.errors import AgentError
from worker.agent.party_file import PartyFile
from worker.federated.errors import WireError
from worker.federated.types import Metrics, Tensors
from worker.federated.wire import decode_private, encode_private
from worker.private_files import OWNER_FILE, OWNER_FOLDER, make_folder, write_file

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Done:
    """A round that is computed and may be handed in.

    Attributes:
        metrics: of the round.
        shared: the encoded shared matrices; None in the deliver round.
    """

    metrics: Metrics
    shared: bytes | None


class _ResultFile(BaseModel):
    client_update_id: UUID
    plan_sha256: str
    shared_sha256: str | None
    metrics: dict[MetricName, float]


class StateFolder:
    """The state of one client.

    Args:
        folder: where the owner wants it; made where missing.
        client_id: keeps clients that share a folder apart.
    """

    def __init__(self, folder: Path, client_id: UUID) -> None:
        self._folder = folder / str(client_id)

    @property
    def signing_key(self) -> Path:
        """The file of the client's private key."""
        return self._folder / "signing-key.pem"

    @property
    def next_signing_key(self) -> Path:
        """The key that follows, while it is not certain that the platform knows it."""
        return self._folder / "next-signing-key.pem"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps other agents of the same client out; the lock ends with the process at the latest.

        Raises:
            AgentError: another agent works with this folder.
        """
        make_folder(self._folder)
        path = self._folder / "lock"
        descriptor = os.open(path, os.O_CREAT | os.O_RDWR, OWNER_FILE)
        with os.fdopen(descriptor, "r+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                holder = file.read(20).strip() or "unknown"
                raise AgentError(
                    f"Another agent of this client (process {holder}) works with the state folder "
                    f"{str(self._folder)!r}. Stop it first, or give this one another --state."
                ) from error
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
            yield

    def adapter_folder(self, run_id: UUID) -> Path:
        """Where the delivered adapter of a run lies."""
        return self._folder / str(run_id) / "adapter"

    def load_private(self, run_id: UUID, round_number: int) -> Tensors | None:
        """What the client kept after a round; None: nothing is here."""
        return _load_tensors(self._round(run_id, round_number) / "private.safetensors")

    def load_checkpoint(self, work: Work) -> Tensors | None:
        """How far an interrupted attempt at the same round got; None: nothing usable is here."""
        try:
            return _load_tensors(self._of(work) / "checkpoint.safetensors")
        except WireError as error:
            logger.warning("the checkpoint of round %d is ignored: %s", work.round_number, error)
            return None

    def save_checkpoint(self, work: Work, tensors: Tensors) -> None:
        """Remembers how far the round is."""
        write_file(self._of(work) / "checkpoint.safetensors", encode_private(tensors))

    def save_trained(self, work: Work, private: Tensors, done: Done) -> None:
        """Keeps a trained round: what stays here first, what says that it is done last."""
        folder = self._of(work)
        write_file(folder / "private.safetensors", encode_private(private))
        if done.shared is not None:
            write_file(folder / "shared.safetensors", done.shared)
        self._save_result(work, done)
        (folder / "checkpoint.safetensors").unlink(missing_ok=True)

    def save_delivered(self, work: Work, write_adapter: Callable[[Path], Metrics]) -> Done:
        """Keeps a delivered adapter, whole, in `adapter_folder`.

        Args:
            work: the deliver round.
            write_adapter: writes the adapter into an empty folder.
        """
        target = self.adapter_folder(work.run_id)
        part = target.with_name("adapter.part")
        shutil.rmtree(part, ignore_errors=True)
        make_folder(part)
        metrics = write_adapter(part)
        for path in part.rglob("*"):
            path.chmod(OWNER_FOLDER if path.is_dir() else OWNER_FILE)
        shutil.rmtree(target, ignore_errors=True)
        part.rename(target)
        done = Done(metrics=metrics, shared=None)
        self._save_result(work, done)
        return done

    def load_done(self, work: Work) -> Done | None:
        """The round, if an earlier attempt finished it here; so nothing is trained twice."""
        folder = self._of(work)
        try:
            file = _ResultFile.model_validate_json((folder / "result.json").read_bytes())
        except (FileNotFoundError, ValidationError):
            return None
        if (file.client_update_id, file.plan_sha256) != (work.client_update_id, work.plan_sha256):
            return None
        if file.shared_sha256 is None:
            return Done(file.metrics, None)
        shared = (folder / "shared.safetensors").read_bytes()
        if hashlib.sha256(shared).hexdigest() != file.shared_sha256:
            return None
        return Done(file.metrics, shared)

    def load_party(self, run_id: UUID, round_number: int) -> PartyFile | None:
        """The client's side of a secure session; None: nothing is here."""
        path = self._round(run_id, round_number) / "party.json"
        return PartyFile.model_validate_json(path.read_bytes()) if path.is_file() else None

    def save_party(self, file: PartyFile) -> None:
        """Keeps the client's side of a secure session."""
        path = self._round(file.run_id, file.round_number) / "party.json"
        write_file(path, file.model_dump_json(indent=1).encode())

    def open_parties(self) -> list[PartyFile]:
        """Sessions in which a masked update may have been sent, and whose shares are not told."""
        found = []
        for path in sorted(self._folder.glob("*/round-*/masked.safetensors")):
            party = path.with_name("party.json")
            if party.is_file():
                found.append(PartyFile.model_validate_json(party.read_bytes()))
        return [file for file in found if file.root]

    def load_masked(self, work: Work) -> bytes | None:
        """The masked update of the present session, if it was made here before."""
        path = self._of(work) / "masked.safetensors"
        return path.read_bytes() if path.is_file() else None

    def save_masked(self, work: Work, masked: bytes) -> None:
        """Keeps a masked update before its first byte leaves: another one must never follow."""
        write_file(self._of(work) / "masked.safetensors", masked)

    def forget_masked(self, work: Work) -> None:
        """Removes the masked update of another session of this round."""
        (self._of(work) / "masked.safetensors").unlink(missing_ok=True)

    def forget_before(self, run_id: UUID, round_number: int) -> None:
        """Removes rounds that no later one needs."""
        for folder in (self._folder / str(run_id)).glob("round-*"):
            number = folder.name.removeprefix("round-")
            if number.isdecimal() and int(number) < round_number:
                shutil.rmtree(folder)

    def _save_result(self, work: Work, done: Done) -> None:
        sha256 = None if done.shared is None else hashlib.sha256(done.shared).hexdigest()
        file = _ResultFile(
            client_update_id=work.client_update_id,
            plan_sha256=work.plan_sha256,
            shared_sha256=sha256,
            metrics=done.metrics,
        )
        write_file(self._of(work) / "result.json", file.model_dump_json(indent=1).encode())

    def _of(self, work: Work) -> Path:
        return self._round(work.run_id, work.round_number)

    def _round(self, run_id: UUID, round_number: int) -> Path:
        return self._folder / str(run_id) / f"round-{round_number:05d}"


def _load_tensors(path: Path) -> Tensors | None:
    return decode_private(path.read_bytes()) if path.is_file() else None
