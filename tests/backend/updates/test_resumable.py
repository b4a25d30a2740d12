"""Uploads in pieces: what goes on, what is refused, and that all of it may be sent twice."""

import hashlib
import os
from typing import Any
from uuid import UUID

import httpx
import pytest
import torch
from redis import Redis
from sqlalchemy import func, select
from sqlalchemy.orm import Session
from starlette.testclient import TestClient

from backend.api_client import ApiClient, ApiUnreachableError
from backend.auth.service import issue_credential
from backend.contracts.agent import PIECE_BYTES, PIECE_MEDIA_TYPE
from backend.contracts.enums import EventKind, Execution
from backend.db.models import Client, ClientUpdate, Event, Upload, UploadPiece
from backend.db.session import SessionFactory
from backend.settings import Settings
from backend.storage import BlobStore
from tests.backend.rows import OpenRun, add_open_run
from tests.factories import Caller, problem
from tests.worker.agent.in_process import InProcess
from worker.federated import types
from worker.federated.wire import encode_update


def shared(size: int, client_id: UUID) -> bytes:
    """An encoded update with so many random bytes of tensor."""
    tensor = torch.frombuffer(bytearray(os.urandom(size)), dtype=torch.uint8)
    return encode_update(
        types.ClientUpdate(
            client_id=str(client_id),
            round_number=1,
            num_examples=8,
            shared={"slots/q": tensor},
            private={},
            metrics={},
        )
    )


class Agent:
    """A client whose update is leased with fence 1."""

    def __init__(self, caller: Caller, rows: OpenRun) -> None:
        self.caller = caller
        self.rows = rows
        self.content = shared(PIECE_BYTES + 5000, rows.client_ids[0])
        self.sha256 = hashlib.sha256(self.content).hexdigest()
        self.path = f"/agent/updates/{rows.update_ids[0]}/uploads"

    def start(self, sha256: str = "", size: int = 0, fence: int = 1) -> Any:
        body = {
            "fence": fence,
            "sha256": sha256 or self.sha256,
            "size_bytes": size or len(self.content),
        }
        return self.caller.post(self.path, body)

    def send(self, start: int, stop: int, content: bytes = b"", sha256: str = "") -> Any:
        return self.caller.request(
            "PATCH",
            f"{self.path}/content?sha256={sha256 or self.sha256}&fence=1",
            content=(content or self.content)[start:stop],
            headers={"Content-Type": PIECE_MEDIA_TYPE, "Upload-Offset": str(start)},
        )

    def complete(self, sha256: str = "", fence: int = 1) -> Any:
        return self.caller.post(
            f"{self.path}/complete?sha256={sha256 or self.sha256}&fence={fence}"
        )


@pytest.fixture
def agent(anonymous: Caller, session: Session, broker: Redis) -> Agent:
    rows = add_open_run(session, execution=Execution.REMOTE)
    credential = issue_credential(session, session.get_one(Client, rows.client_ids[0]))
    session.commit()
    agent = Agent(anonymous.with_token(credential), rows)
    assert agent.caller.post("/agent/lease", {"agent": "here"}).json()["work"]
    return agent


def test_pieces_become_the_whole_and_every_step_may_be_repeated(
    agent: Agent, session_factory: SessionFactory, blob_store: BlobStore
) -> None:
    assert agent.start().json()["offset"] == 0
    assert agent.send(0, PIECE_BYTES).json()["offset"] == PIECE_BYTES
    repeated = problem(agent.send(0, PIECE_BYTES), 409, "upload_offset")
    assert f"Go on from {PIECE_BYTES}" in repeated["detail"]
    assert agent.start().json()["offset"] == PIECE_BYTES, "another process goes on"
    problem(agent.complete(), 409, "upload_offset")
    assert agent.send(PIECE_BYTES, len(agent.content)).json()["offset"] == len(agent.content)
    receipt = {"sha256": agent.sha256, "size_bytes": len(agent.content)}
    assert [agent.complete().json() for _ in range(2)] == [receipt, receipt]
    assert agent.start().json()["offset"] == len(agent.content), "nothing is sent again"
    assert blob_store.read(agent.sha256) == agent.content
    with session_factory() as session:
        row = session.get_one(ClientUpdate, agent.rows.update_ids[0])
        assert row.shared_sha256 == agent.sha256
        for table in (Upload, UploadPiece):
            assert session.scalar(select(func.count()).select_from(table)) == 0


def test_other_bytes_than_announced_are_forgotten(agent: Agent, session: Session) -> None:
    wrong = agent.content[:-1] + bytes([agent.content[-1] ^ 1])
    agent.start()
    agent.send(0, PIECE_BYTES, wrong)
    agent.send(PIECE_BYTES, len(wrong), wrong)
    refused = problem(agent.complete(), 422, "upload_checksum")
    assert hashlib.sha256(wrong).hexdigest() in refused["detail"]
    assert session.get_one(ClientUpdate, agent.rows.update_ids[0]).shared_sha256 is None
    assert agent.start().json()["offset"] == 0


def test_what_is_no_container_is_refused(agent: Agent, session: Session) -> None:
    garbage = b"garbage" * 10
    sha256 = hashlib.sha256(garbage).hexdigest()
    agent.start(sha256, len(garbage))
    agent.send(0, len(garbage), garbage, sha256)
    problem(agent.complete(sha256), 422, "shared_refused")
    problem(agent.complete(sha256), 404, "not_found")
    event = session.scalars(select(Event).where(Event.kind == EventKind.UPDATE_REFUSED)).one()
    assert event.data["code"] == "shared_refused"
    assert session.get_one(ClientUpdate, agent.rows.update_ids[0]).shared_sha256 is None


def test_sizes_are_refused_before_bytes_are_kept(
    agent: Agent, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent.start(size=100)
    problem(agent.send(0, 101), 413, "too_large")
    problem(agent.send(0, PIECE_BYTES + 1), 413, "too_large")
    problem(agent.start(size=99), 409, "upload_size")
    monkeypatch.setattr(settings, "max_update_bytes", 1000)
    problem(agent.start("1" * 64, 1001), 413, "too_large")


def test_only_the_holder_of_the_lease_uploads(agent: Agent, viewer: Caller) -> None:
    problem(agent.start(fence=2), 409, "lease_lost")
    agent.start()
    problem(agent.complete(fence=2), 409, "lease_lost")
    problem(Agent(viewer, agent.rows).start(), 403, "forbidden")
    problem(agent.send(0, 10, sha256="2" * 64), 404, "not_found")


def test_the_hash_of_a_foreign_blob_gives_nothing(
    agent: Agent, session: Session, blob_store: BlobStore
) -> None:
    foreign = blob_store.put(shared(100, agent.rows.client_ids[0]), "application/vnd.safetensors")
    assert agent.start(foreign.sha256, foreign.size_bytes).json()["offset"] == 0
    problem(agent.complete(foreign.sha256), 409, "upload_offset")


class DyingLine(InProcess):
    """A line on which only so many pieces arrive."""

    def __init__(self, http: TestClient, num_pieces: int) -> None:
        super().__init__(http)
        self._num_pieces = num_pieces

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        if self.seen.count("content") == self._num_pieces and request.method == "PATCH":
            raise httpx.ConnectError("the line is dead")
        return super().handle_request(request)


def test_a_new_process_and_attempt_go_on_where_the_killed_one_was(agent: Agent) -> None:
    update_id = agent.rows.update_ids[0]

    def client_of(line: DyingLine) -> ApiClient:
        client = ApiClient("http://platform.test", transport=line, max_retries=0)
        client.use_token(agent.caller.token or "")
        return client

    first = DyingLine(agent.caller.http, num_pieces=1)
    with pytest.raises(ApiUnreachableError):
        client_of(first).agent.upload_shared(update_id, 1, agent.content)
    released = agent.caller.post(f"/agent/updates/{update_id}/release", {"fence": 1})
    assert released.status_code == 204
    assert agent.caller.post("/agent/lease", {"agent": "again"}).json()["work"]["fence"] == 2
    second = DyingLine(agent.caller.http, num_pieces=9)
    receipt = client_of(second).agent.upload_shared(update_id, 2, agent.content)
    assert (receipt.sha256, receipt.size_bytes) == (agent.sha256, len(agent.content))
    assert second.seen == ["uploads", "content", "complete"], "only the missing piece was sent"
