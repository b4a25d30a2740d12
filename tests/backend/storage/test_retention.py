"""Retention: ended runs give up what nobody needs, and nothing else."""

import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from uuid import UUID

import pytest
from sqlalchemy import func, select, update
from sqlalchemy.orm import Session
from typer.testing import CliRunner

from backend import sweep
from backend.cli import app
from backend.contracts.enums import RoundKind, RoundStatus, RunStatus, UpdateStatus
from backend.db.models import Blob, ClientUpdate, Federation, Round, Run
from backend.db.session import SessionFactory
from backend.settings import Settings, get_settings
from backend.storage import BlobStore, open_blob_store, save_blob
from backend.storage.garbage import collect_garbage
from backend.storage.retention import (
    Expired,
    RetentionPolicy,
    find_expired,
    give_up_expired,
)
from tests.backend.rows import add_clients, add_run

NOW = RetentionPolicy(days=0, rounds=0)


@pytest.fixture
def store(tmp_path: Path) -> BlobStore:
    return open_blob_store((tmp_path / "blobs").as_uri())


class History:
    """A run of one client with some closed rounds, a delivery, and blobs of two bytes each."""

    def __init__(
        self, session: Session, store: BlobStore, status: RunStatus, num_rounds: int = 3
    ) -> None:
        self.session = session
        self.store = store
        clients = add_clients(session, 1)
        run = add_run(session, clients, status, num_rounds=num_rounds)
        self.run_id: UUID = run.id
        self.federation_id = run.federation_id
        run.round_number = num_rounds + 1
        run.ended_at = func.now() - timedelta(days=10)
        run.state_sha256 = self.blob("S")
        for number in range(1, num_rounds + 2):
            is_last = number > num_rounds
            kind = RoundKind.DELIVER if is_last else RoundKind.TRAIN
            round_ = Round(run_id=run.id, round_number=number, kind=kind, status=RoundStatus.CLOSED)
            session.add(round_)
            session.flush()
            row = ClientUpdate(
                round_id=round_.id, client_id=clients[0].id, status=UpdateStatus.ACCEPTED,
                plan_sha256=self.blob(f"p{number}"), aggregated_in=None if is_last else number,
            )  # fmt: skip
            if is_last:
                row.adapter_sha256 = self.blob("A")
            else:
                row.shared_sha256 = self.blob(f"s{number}")
                row.private_sha256 = self.blob(f"k{number}")
            session.add(row)
        session.execute(update(Blob).values(last_stored_at=func.now() - timedelta(days=2)))
        session.commit()

    def blob(self, text: str) -> str:
        return save_blob(self.session, self.store, f"{text:<2}".encode(), "text/plain").sha256

    def kept(self, session_factory: SessionFactory) -> set[str]:
        """The blobs that are still there after a garbage collection."""
        collect_garbage(session_factory, self.store, timedelta(days=1))
        with session_factory() as session:
            hashes = session.scalars(select(Blob.sha256)).all()
        return {self.store.read(sha256).decode().strip() for sha256 in hashes}


def test_results_stay_and_what_led_to_them_goes(
    session: Session, session_factory: SessionFactory, store: BlobStore
) -> None:
    history = History(session, store, RunStatus.COMPLETED)
    everything = {"S", "A", *(f"{kind}{n}" for kind in "psk" for n in (1, 2, 3)), "p4"}
    assert history.kept(session_factory) == everything
    expected = Expired(num_runs=1, num_updates=4, size_bytes=20)
    assert find_expired(session_factory, NOW) == expected
    assert history.kept(session_factory) == everything, "only looked at"
    assert give_up_expired(session_factory, NOW) == expected
    assert give_up_expired(session_factory, NOW) == Expired(0, 0, 0)
    assert history.kept(session_factory) == {"S", "A"}
    session.expire_all()
    assert session.get_one(Run, history.run_id).cleared_at is not None


@pytest.mark.parametrize(
    ("policy", "status", "is_kept"),
    [
        (RetentionPolicy(None, 0), RunStatus.COMPLETED, True),  # for ever
        (RetentionPolicy(11, 0), RunStatus.COMPLETED, True),  # it ended ten days ago
        (RetentionPolicy(9, 0), RunStatus.COMPLETED, False),
        (RetentionPolicy(9, 0), RunStatus.CANCELLED, False),
        (RetentionPolicy(9, 0), RunStatus.RUNNING, True),
        (RetentionPolicy(9, 0), RunStatus.PAUSED, True),
    ],
)
def test_only_runs_that_ended_long_enough_ago(
    session: Session,
    session_factory: SessionFactory,
    store: BlobStore,
    policy: RetentionPolicy,
    status: RunStatus,
    is_kept: bool,
) -> None:
    history = History(session, store, status)
    give_up_expired(session_factory, policy)
    assert ("s1" in history.kept(session_factory)) is is_kept


def test_the_last_rounds_keep_theirs(
    session: Session, session_factory: SessionFactory, store: BlobStore
) -> None:
    history = History(session, store, RunStatus.COMPLETED)
    give_up_expired(session_factory, RetentionPolicy(0, 2))
    kept = {"S", "A", "p2", "s2", "k2", "p3", "s3", "k3", "p4"}
    assert history.kept(session_factory) == kept


@pytest.mark.parametrize(("days", "is_kept"), [(20.0, True), (5.0, False)])
def test_a_federation_may_have_its_own_policy(
    session: Session, session_factory: SessionFactory, store: BlobStore, days: float, is_kept: bool
) -> None:
    history = History(session, store, RunStatus.COMPLETED)
    session.get_one(Federation, history.federation_id).retention_days = days
    session.commit()
    platforms = RetentionPolicy(None if is_kept is False else 0, 0)  # says the opposite
    give_up_expired(session_factory, platforms)
    assert ("s1" in history.kept(session_factory)) is is_kept


def test_a_failed_run_keeps_what_it_may_be_resumed_with(
    session: Session, session_factory: SessionFactory, store: BlobStore
) -> None:
    """Rounds 1 and 2 are aggregated; round 3 failed after its client had handed in."""
    history = History(session, store, RunStatus.FAILED)
    run = session.get_one(Run, history.run_id)
    run.round_number = 3
    deliver, third = session.scalars(
        select(Round).where(Round.run_id == run.id).order_by(Round.round_number.desc()).limit(2)
    ).all()
    session.delete(
        session.scalars(select(ClientUpdate).where(ClientUpdate.round_id == deliver.id)).one()
    )
    session.flush()
    session.delete(deliver)
    third.status = RoundStatus.FAILED
    session.commit()
    give_up_expired(session_factory, NOW)
    assert history.kept(session_factory) == {"S", "p3", "s3", "k3"}


def test_a_failed_run_keeps_a_late_client_s_plan_and_what_it_goes_on_from(
    session: Session, session_factory: SessionFactory, store: BlobStore
) -> None:
    """Round 2 closed without the client, which is still at it: resuming lets it go on."""
    history = History(session, store, RunStatus.FAILED)
    second = session.scalars(
        select(ClientUpdate)
        .join(Round, ClientUpdate.round_id == Round.id)
        .where(Round.run_id == history.run_id, Round.round_number >= 2)
        .order_by(Round.round_number)
    ).all()
    second[0].status, second[0].aggregated_in = UpdateStatus.CANCELLED, None
    second[0].shared_sha256 = second[0].private_sha256 = None
    for later in second[1:]:
        session.delete(later)
    session.commit()
    give_up_expired(session_factory, NOW)
    assert history.kept(session_factory) == {"S", "p1", "s1", "k1", "p2"}


@pytest.fixture
def a_day_only(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[Settings]:
    """Settings of a retention of one day, also for commands, which read the environment."""
    monkeypatch.setenv("FEDBRAID_RETENTION_DAYS", "1")
    get_settings.cache_clear()
    yield get_settings()
    get_settings.cache_clear()


def test_the_command_and_the_sweep_apply_it(
    session: Session,
    session_factory: SessionFactory,
    a_day_only: Settings,
    blob_store: BlobStore,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    histories = [History(session, blob_store, RunStatus.COMPLETED) for _ in range(2)]
    for option, done in (("--dry-run", "would be"), ("", "were")):
        said = CliRunner().invoke(app, ["gc", *option.split()], env={"COLUMNS": "200"}).output
        assert f"8 client updates in 2 ended runs, 20 bytes, {done} given up" in said
    later = History(session, blob_store, RunStatus.COMPLETED)
    stop = threading.Event()
    monkeypatch.setattr(sweep, "FIRST_COLLECTION_SECONDS", 0.0)
    monkeypatch.setattr(a_day_only, "sweep_interval_seconds", 0.05)
    thread = threading.Thread(target=sweep.run_forever, args=(a_day_only, stop))
    thread.start()
    deadline = time.monotonic() + 30
    while find_expired(session_factory, RetentionPolicy(1, 0)).num_runs:
        assert time.monotonic() < deadline, "the sweep does not apply it"
        time.sleep(0.05)
    stop.set()
    thread.join(20)
    session.expire_all()
    runs = [session.get_one(Run, history.run_id) for history in (*histories, later)]
    assert all(run.cleared_at is not None and run.state_sha256 for run in runs)
