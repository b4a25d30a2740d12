"""Faults that are really injected into a site while one of its runs goes on."""

import random
from dataclasses import dataclass, field
from pathlib import Path
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.orm import Session

from backend.contracts.enums import RoundKind, RoundStatus, UpdateStatus
from backend.contracts.jobs import QUEUES, CloseRound, Job, OpenRound, RunClientUpdate
from backend.db.models import Client, ClientUpdate, Round
from backend.lifecycle import lock_run
from tests.faults.bad_line import CallTrouble
from tests.faults.outcome import Part
from tests.faults.plan import Corruption, Crash, Fault, JobsAgain, Kill
from tests.faults.site import Site


@dataclass(frozen=True)
class Damage:
    """A blob with a changed byte."""

    part: Part
    path: Path
    content: bytes  # as it was

    @property
    def is_there(self) -> bool:
        return self.path.read_bytes() != self.content

    def repair(self) -> None:
        self.path.write_bytes(self.content)


@dataclass
class Injector:
    """Injects the faults of one repetition and counts those that happened."""

    site: Site
    run_id: UUID
    source: random.Random
    num_injected: int = 0
    damage: Damage | None = None
    _calls_before: int = field(init=False)

    def __post_init__(self) -> None:
        self._calls_before = self.site.line.num_happened

    @property
    def num_calls_troubled(self) -> int:
        return self.site.line.num_happened - self._calls_before

    def inject(self, fault: Fault) -> bool:
        """False: it cannot happen yet; ask again."""
        match fault:
            case Kill(program, away_seconds):
                self.num_injected += self.site.programs[program].kill(away_seconds)
            case Crash(service):
                self.site.crash(service)
                self.num_injected += 1
            case JobsAgain(copies):
                self._send_again(copies)
                self.num_injected += 1
            case CallTrouble():
                self.site.line.order(fault)  # counted when it happens
            case Corruption(byte):
                return self._corrupt(byte)
        return True

    def _send_again(self, copies: int) -> None:
        with self.site.session_factory() as session:
            rounds = session.scalars(select(Round.id).where(Round.run_id == self.run_id)).all()
            updates = session.scalars(
                select(ClientUpdate.id)
                .join(Client, ClientUpdate.client_id == Client.id)
                .where(ClientUpdate.round_id.in_(rounds), Client.dataset.is_not(None))
            ).all()
        jobs: list[Job] = [
            OpenRound(run_id=self.run_id),
            *(CloseRound(round_id=round_id) for round_id in rounds),
            *(RunClientUpdate(client_update_id=update_id) for update_id in updates),
        ]
        jobs *= copies
        self.source.shuffle(jobs)
        for job in jobs:
            payload = job.model_dump(mode="json")
            name = payload.pop("name")
            self.site.broker.send_task(name, kwargs=payload, queue=QUEUES[type(job)].value)

    def _corrupt(self, byte: float) -> bool:
        with self.site.session_factory() as session:
            # A round closes only under this lock: what is open now is aggregated afterwards.
            lock_run(session, self.run_id)
            found = self._accepted(session)
            if found is None:
                return False
            part, sha256 = found
            path = self.site.deployment.home / "blobs" / sha256[:2] / sha256[2:]
            content = path.read_bytes()
            self.damage = Damage(part, path, content)
            damaged = bytearray(content)
            damaged[int(byte * len(content))] ^= 1
            path.write_bytes(damaged)
        self.num_injected += 1
        return True

    def _accepted(self, session: Session) -> tuple[Part, str] | None:
        row = session.execute(
            select(Round.round_number, Client.name, ClientUpdate.shared_sha256)
            .join(Round, ClientUpdate.round_id == Round.id)
            .join(Client, ClientUpdate.client_id == Client.id)
            .where(
                Round.run_id == self.run_id,
                Round.status == RoundStatus.OPEN,
                Round.kind == RoundKind.TRAIN,
                ClientUpdate.status == UpdateStatus.ACCEPTED,
            )
            .limit(1)
        ).first()
        if row is None or row.shared_sha256 is None:
            return None
        return (row.round_number, row.name), row.shared_sha256
