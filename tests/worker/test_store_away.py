"""A federation whose S3 store goes away in the middle of a round, over real HTTP."""

import threading
from collections.abc import Iterator
from uuid import uuid4

import httpx
import pytest
from moto.server import ThreadedMotoServer
from sqlalchemy import select

from backend.contracts.enums import AttemptOutcome, RunStatus
from backend.contracts.jobs import CloseRound, Job, OpenRound
from backend.contracts.params.h2tune import H2TuneParams
from backend.db.models import Attempt
from backend.db.session import SessionFactory
from backend.settings import Settings
from backend.storage import BlobStoreUnavailableError, open_blob_store
from tests.running_platform import free_port
from tests.serving import use_s3
from tests.worker.test_rounds import do, drain, make_clients, queue_run, sent, state_of
from worker.patient_store import PatientBlobStore
from worker.platform import Platform

__all__ = ["sent"]  # a fixture

AWAY_SECONDS = 2.5


class S3:
    """A server that can be stopped and started again with what it holds."""

    def __init__(self) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.num_outages = 0
        self._server = self._started()
        self._back: list[threading.Timer] = []

    def go_away(self) -> None:
        """Nobody listens for some seconds."""
        self.stop()
        self.num_outages += 1
        timer = threading.Timer(AWAY_SECONDS, self._come_back)
        self._back.append(timer)
        timer.start()

    def stop(self) -> None:
        """Waits until it is back, then ends it."""
        for timer in self._back:
            timer.join()
        self._server.stop()

    def _come_back(self) -> None:
        self._server = self._started()

    def _started(self) -> ThreadedMotoServer:
        server = ThreadedMotoServer("127.0.0.1", self.port, verbose=False)
        server.start()
        return server


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[S3]:
    server = S3()
    use_s3(monkeypatch, server.url)
    yield server
    server.stop()


@pytest.fixture
def bucket(s3: S3) -> str:
    name = f"bucket-{uuid4()}"
    httpx.put(f"{s3.url}/{name}").raise_for_status()
    return f"s3://{name}/prefix"


def test_a_run_goes_on_as_if_nothing_had_been(
    session_factory: SessionFactory, s3: S3, bucket: str, sent: list[Job]
) -> None:
    """The store is away while a round opens, while clients hand in and while it is aggregated."""
    store = PatientBlobStore(open_blob_store(bucket), patience_seconds=60)
    platform = Platform(session_factory, store, Settings(lease_seconds=60, max_attempts=1))
    clients = make_clients(platform)
    undisturbed, disturbed = (queue_run(platform, H2TuneParams(), 1, clients) for _ in range(2))
    sent.append(OpenRound(run_id=undisturbed))
    drain(platform, sent)

    sent.append(OpenRound(run_id=disturbed))
    seen: set[type] = set()
    while sent:
        job = sent.pop(0)
        if type(job) not in seen:  # once at each kind of job
            seen.add(type(job))
            s3.go_away()
        do(platform, job)
    assert s3.num_outages == 3
    assert CloseRound in seen
    runs = [state_of(platform, run_id) for run_id in (undisturbed, disturbed)]
    assert [run.status for run in runs] == [RunStatus.COMPLETED] * 2
    assert runs[0].state_sha256 == runs[1].state_sha256, "bit for bit"
    with session_factory() as session:
        outcomes = set(session.scalars(select(Attempt.outcome)))
    assert outcomes == {AttemptOutcome.ACCEPTED}, "no attempt was lost"


def test_without_patience_it_is_said_within_seconds(s3: S3, bucket: str) -> None:
    store = open_blob_store(bucket)
    s3.go_away()
    with pytest.raises(BlobStoreUnavailableError):
        store.put(b"content", "text/plain")
