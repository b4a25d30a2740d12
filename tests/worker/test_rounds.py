"""The round life with real training, a real database and a real blob store, jobs run by hand.

Celery is left out on purpose: the tests decide how often and in which order jobs arrive.
"""

import logging
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import pytest
import torch
from sqlalchemy import select

from backend import jobs
from backend.contracts.base_models import BaseModelRef
from backend.contracts.enums import (
    AttemptOutcome,
    EventKind,
    RoundKind,
    RoundStatus,
    RunStatus,
    UpdateStatus,
)
from backend.contracts.jobs import CloseRound, Job, OpenRound, RunClientUpdate
from backend.contracts.metrics import MetricName
from backend.contracts.params.base import StrategyParams
from backend.contracts.params.h2tune import H2TuneParams
from backend.contracts.params.lora import FloristParams, LocalOnlyParams
from backend.contracts.privacy import DifferentialPrivacy, PrivacySettings
from backend.db.models import Attempt, Client, ClientUpdate, Event, Metric, Round, Run
from backend.db.session import SessionFactory
from backend.embedded import EmbeddedPostgres
from backend.settings import Settings
from backend.storage.object_store import open_blob_store
from backend.sweep import sweep_once
from tests.backend.rows import add_clients, add_run
from worker import rounds
from worker.federated.strategies.h2tune import H2Tune
from worker.federated.wire import decode_private, decode_update
from worker.platform import Platform


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[Job]:
    """Jobs that would have gone to the broker."""
    waiting: list[Job] = []
    monkeypatch.setattr(jobs, "enqueue", waiting.append)
    return waiting


@pytest.fixture
def platform(session_factory: SessionFactory, tmp_path: Path) -> Iterator[Platform]:
    blobs = tmp_path / "blobs"
    blobs.mkdir()
    settings = Settings(lease_seconds=60, max_attempts=2, worker_folder=tmp_path / "worker")
    yield Platform(session_factory, open_blob_store(blobs.as_uri()), settings)


def make_clients(platform: Platform) -> list[Client]:
    models = [("tiny_llama", 4), ("tiny_gemma", 2)]
    with platform.session_factory() as session:
        clients = add_clients(session, len(models))
        for client, (model, rank) in zip(clients, models, strict=True):
            client.base_model = BaseModelRef(source="builtin", id=model).model_dump()
            client.lora_rank = rank
        session.commit()
    return clients


def queue_run(
    platform: Platform,
    params: StrategyParams,
    num_rounds: int = 2,
    clients: list[Client] | None = None,
    **training: int,
) -> UUID:
    clients = clients or make_clients(platform)
    with platform.session_factory() as session:
        members = [session.get_one(Client, client.id) for client in clients]
        run = add_run(session, members, RunStatus.QUEUED, num_rounds=num_rounds)
        run.strategy = params.model_dump(mode="json")
        run.training = {**run.training, **training}
        session.commit()
        return run.id


def do(platform: Platform, job: Job) -> None:
    match job:
        case OpenRound():
            rounds.open_round(platform, job.run_id)
        case RunClientUpdate():
            rounds.run_client_update(platform, job.client_update_id, "by-hand")
        case CloseRound():
            rounds.close_round(platform, job.round_id)


def drain(platform: Platform, waiting: list[Job], *, copies: int = 1, seed: int = 0) -> None:
    """Does jobs in random order until none is left, each `copies` times."""
    order = random.Random(seed)
    while waiting:
        job = waiting.pop(order.randrange(len(waiting)))
        for _ in range(copies):
            do(platform, job)


def state_of(platform: Platform, run_id: UUID) -> Run:
    with platform.session_factory() as session:
        return session.get_one(Run, run_id)


@pytest.mark.parametrize(
    "params",
    [LocalOnlyParams(), H2TuneParams(), FloristParams(group_by="architecture")],
    ids=lambda p: p.name,
)
def test_a_run_goes_from_queued_to_adapters(
    platform: Platform, sent: list[Job], params: StrategyParams
) -> None:
    run_id = queue_run(platform, params, num_rounds=2)
    sent.append(OpenRound(run_id=run_id))
    drain(platform, sent)
    run = state_of(platform, run_id)
    assert (run.status, run.error, run.round_number) == (RunStatus.COMPLETED, None, 3)
    with platform.session_factory() as session:
        opened = session.scalars(
            select(Round).where(Round.run_id == run_id).order_by(Round.round_number)
        ).all()
        assert [r.kind for r in opened] == [RoundKind.TRAIN, RoundKind.TRAIN, RoundKind.DELIVER]
        assert {r.status for r in opened} == {RoundStatus.CLOSED}
        updates = session.scalars(select(ClientUpdate)).all()
        assert {u.status for u in updates} == {UpdateStatus.ACCEPTED}
        delivered = [u for u in updates if u.round_id == opened[-1].id]
        assert all(u.adapter_sha256 for u in delivered)
        assert len(delivered) == 2
        accuracies = session.scalars(
            select(Metric.value).where(Metric.name == MetricName.ACCURACY_DELIVERED)
        ).all()
        assert len(accuracies) == 2
        kinds = session.scalars(select(Event.kind).order_by(Event.id)).all()
    assert kinds[0] is EventKind.RUN_STARTED
    assert kinds[-1] is EventKind.RUN_COMPLETED


def test_jobs_delivered_twice_in_any_order_do_their_work_once(
    platform: Platform, sent: list[Job]
) -> None:
    clients = make_clients(platform)
    final_states = []
    for copies, seed in [(1, 0), (3, 1)]:
        run_id = queue_run(platform, H2TuneParams(), num_rounds=2, clients=clients)
        sent.append(OpenRound(run_id=run_id))
        drain(platform, sent, copies=copies, seed=seed)
        run = state_of(platform, run_id)
        assert run.status is RunStatus.COMPLETED
        final_states.append(run.state_sha256)
        with platform.session_factory() as session:
            attempts = session.scalars(
                select(Attempt.number)
                .join(ClientUpdate, Attempt.client_update_id == ClientUpdate.id)
                .join(Round, ClientUpdate.round_id == Round.id)
                .where(Round.run_id == run_id)
            ).all()
        assert attempts == [1] * 6  # 2 clients x (2 training rounds + delivery)
    assert final_states[0] is not None
    assert final_states[0] == final_states[1], "same seed, same clients: not the same bits"


def test_the_shared_state_changes_in_every_round(platform: Platform, sent: list[Job]) -> None:
    run_id = queue_run(platform, H2TuneParams(), num_rounds=2)
    seen = []
    sent.append(OpenRound(run_id=run_id))
    while sent:
        job = sent.pop(0)
        do(platform, job)
        if isinstance(job, OpenRound):
            seen.append(state_of(platform, run_id).state_sha256)
    assert len(set(seen)) == 3  # before round 1, after round 1, after round 2


def test_lost_jobs_are_sent_again_by_the_sweep(platform: Platform, sent: list[Job]) -> None:
    run_id = queue_run(platform, LocalOnlyParams(), num_rounds=1)
    impatient = Settings(lease_seconds=1e-6)
    for _ in range(20):
        sweep_once(platform.session_factory, impatient)
        lost = sent.copy()
        sent.clear()
        for job in lost:
            do(platform, job)
            sent.clear()  # whatever the job sends on is lost as well
        if state_of(platform, run_id).status.is_terminal:
            break
    assert state_of(platform, run_id).status is RunStatus.COMPLETED


def test_a_client_that_cannot_take_part_fails_the_run_with_a_sentence(
    platform: Platform, sent: list[Job]
) -> None:
    run_id = queue_run(platform, H2TuneParams(alignment_init="identity"))
    drain(platform, [OpenRound(run_id=run_id)])
    run = state_of(platform, run_id)
    assert run.status is RunStatus.FAILED
    assert run.error is not None
    assert "client-" in run.error  # names who
    assert "interpolation" in run.error  # and what to choose instead
    assert sent == []


def test_a_bug_in_training_ends_the_run_and_reaches_the_log(
    platform: Platform, sent: list[Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = queue_run(platform, H2TuneParams())
    do(platform, OpenRound(run_id=run_id))

    def explode(*_: object) -> None:
        raise ZeroDivisionError("secret detail")

    monkeypatch.setattr(H2Tune, "train_client", explode)
    with pytest.raises(ZeroDivisionError):
        do(platform, sent[0])
    run = state_of(platform, run_id)
    assert run.status is RunStatus.FAILED
    assert run.error is not None
    assert "internal error (ZeroDivisionError)" in run.error
    assert "secret detail" not in run.error
    with platform.session_factory() as session:
        assert session.scalars(select(Attempt)).one().outcome is AttemptOutcome.FAILED


def test_a_worker_that_must_stop_gives_its_update_back(platform: Platform, sent: list[Job]) -> None:
    run_id = queue_run(platform, LocalOnlyParams(), num_rounds=1)
    do(platform, OpenRound(run_id=run_id))
    first = sent[0]
    assert isinstance(first, RunClientUpdate)
    rounds.run_client_update(platform, first.client_update_id, "leaving", is_stopping=lambda: True)
    with platform.session_factory() as session:
        row = session.get_one(ClientUpdate, first.client_update_id)
        assert row.status is UpdateStatus.PENDING
        assert session.scalars(select(Attempt)).one().outcome is AttemptOutcome.RELEASED
    drain(platform, sent)
    assert state_of(platform, run_id).status is RunStatus.COMPLETED


KILLED_WORKER = """
import sys
from uuid import UUID
from worker import rounds
from worker.platform import get_platform
rounds.run_client_update(get_platform(), UUID(sys.argv[1]), "to be killed")
"""


def kill_in_training(job: Job, folder: Path, environment: dict[str, str]) -> int:
    """Does a client update in another process, kills it, and gives the last saved step."""
    assert isinstance(job, RunClientUpdate)
    path = folder / "checkpoints" / f"{job.client_update_id}.safetensors"
    worker = subprocess.Popen(
        [sys.executable, "-c", KILLED_WORKER, str(job.client_update_id)],
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )
    step = 0
    while worker.poll() is None and step < 3:
        time.sleep(0.02)
        step = int(decode_private(path.read_bytes())["step"]) if path.exists() else 0
    worker.kill()
    assert worker.wait() == -signal.SIGKILL, "it ended before it could be killed"
    return int(decode_private(path.read_bytes())["step"])


def private_of(platform: Platform, run_id: UUID) -> list[str | None]:
    with platform.session_factory() as session:
        return list(
            session.scalars(
                select(ClientUpdate.private_sha256)
                .join(Round, ClientUpdate.round_id == Round.id)
                .where(Round.run_id == run_id, Round.round_number == 1)
                .order_by(ClientUpdate.client_id)
            )
        )


def test_a_killed_worker_is_gone_on_from_and_the_bits_are_the_same(
    platform: Platform,
    sent: list[Job],
    postgres: EmbeddedPostgres,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    clients = make_clients(platform)
    undisturbed, killed = (
        queue_run(platform, H2TuneParams(), 1, clients, local_steps=60) for _ in range(2)
    )
    drain(platform, [OpenRound(run_id=undisturbed)])
    drain(platform, sent)
    do(platform, OpenRound(run_id=killed))
    step = kill_in_training(
        sent.pop(0),
        tmp_path / "worker",
        {
            "DATABASE_URL": postgres.url,
            "BLOB_URL": (tmp_path / "blobs").as_uri(),
            "FEDBRAID_WORKER_FOLDER": str(tmp_path / "worker"),
            "FEDBRAID_CHECKPOINT_INTERVAL_SECONDS": "0",
            "FEDBRAID_LEASE_SECONDS": "0.5",
        },
    )
    time.sleep(0.6)
    sweep_once(platform.session_factory, platform.settings)
    drain(platform, sent)
    assert state_of(platform, killed).status is RunStatus.COMPLETED
    assert f"going on after step {step} of 60" in caplog.text
    assert private_of(platform, killed) == private_of(platform, undisturbed)
    assert None not in private_of(platform, killed)
    final = {state_of(platform, run_id).state_sha256 for run_id in (undisturbed, killed)}
    assert len(final) == 1
    assert list((tmp_path / "worker").rglob("*.safetensors")) == []


def test_damaged_checkpoints_are_ignored_and_old_ones_removed(
    platform: Platform, sent: list[Job], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run_id = queue_run(platform, LocalOnlyParams(), num_rounds=1)
    do(platform, OpenRound(run_id=run_id))
    folder = tmp_path / "worker" / "checkpoints"
    folder.mkdir(parents=True)
    job = sent[0]
    assert isinstance(job, RunClientUpdate)
    (folder / f"{job.client_update_id}.safetensors").write_bytes(b"half a file")
    abandoned = folder / "abandoned.safetensors"
    abandoned.touch()
    os.utime(abandoned, (0, 0))
    drain(platform, sent)
    assert state_of(platform, run_id).status is RunStatus.COMPLETED
    assert "is ignored: This" in caplog.text
    assert list(folder.iterdir()) == []


def test_a_private_run_sends_noise_and_tells_epsilon_and_no_measurement(
    platform: Platform, sent: list[Job]
) -> None:
    params = H2TuneParams(gauge="none", train_alignment=False, mask_warmup_rounds=0)
    noise = DifferentialPrivacy(noise_multiplier=3.0, clip_norm=2.0)
    run_id = queue_run(platform, params, num_rounds=2)
    with platform.session_factory() as session:
        run = session.get_one(Run, run_id)
        run.privacy = PrivacySettings(differential_privacy=noise).model_dump(mode="json")
        session.commit()
    sent.append(OpenRound(run_id=run_id))
    drain(platform, sent)
    assert state_of(platform, run_id).status is RunStatus.COMPLETED
    with platform.session_factory() as session:
        metrics = session.scalars(select(Metric).where(Metric.run_id == run_id)).all()
        blobs = session.scalars(
            select(ClientUpdate.shared_sha256).where(ClientUpdate.shared_sha256.is_not(None))
        ).all()
    spent = {m.round_number: m.value for m in metrics if m.name is MetricName.EPSILON}
    assert spent == {number: noise.epsilon_after(number) for number in (1, 2)}
    assert not [m.name for m in metrics if "accuracy" in m.name or "loss" in m.name]
    updates = [decode_update(platform.store.read(sha256)) for sha256 in blobs if sha256]
    values = [t.flatten() for u in updates for n, t in u.shared.items() if n.startswith("values/")]
    assert float(torch.cat(values).std()) == pytest.approx(3.0 * 2.0, rel=0.1)
