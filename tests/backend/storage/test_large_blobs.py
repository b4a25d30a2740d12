"""Large bodies through the real API in a process of its own, whose memory must not follow them.

`FEDBRAID_TEST_LARGE_MIB=2048` tries 2 GiB instead of 64 MiB.
"""

import json
import logging
import os
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

import httpx
import pytest
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from backend.auth.service import issue_credential
from backend.contracts.agent import SHARED_MEDIA_TYPE
from backend.contracts.enums import Execution
from backend.db.models import Client, ClientUpdate
from backend.settings import Settings
from tests.backend.rows import OpenRun, add_open_run
from tests.running_platform import free_port

logger = logging.getLogger(__name__)

MEBIBYTE = 2**20
SIZE_MIB = int(os.environ.get("FEDBRAID_TEST_LARGE_MIB", "64"))
ALLOWED_MIB = 64

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="the peak of a process's memory is in /proc"
)


@dataclass(frozen=True)
class Server:
    """An API server and its memory."""

    http: httpx.Client
    process: subprocess.Popen[bytes]

    def peak_mib(self) -> float:
        """Largest resident memory so far."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) / 1024


@pytest.fixture
def server(settings: Settings, engine: Engine) -> Iterator[Server]:
    port = free_port()
    command = [sys.executable, "-m", "uvicorn", "--factory", "backend.main:create_app"]
    process = subprocess.Popen(
        [*command, "--port", str(port), "--no-access-log"],
        env={**os.environ, "FEDBRAID_MAX_UPDATE_BYTES": str(8 * 2**30)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}/api/v1", timeout=600) as http:
            deadline = time.monotonic() + 240
            while not _answers(http):
                assert process.poll() is None, "the server ended by itself"
                assert time.monotonic() < deadline, "the server does not answer"
                time.sleep(0.1)
            yield Server(http, process)
    finally:
        process.terminate()
        process.wait(20)


def _answers(http: httpx.Client) -> bool:
    try:
        return http.get("/metrics").status_code == 401
    except httpx.TransportError:
        return False


@pytest.fixture
def rows(session: Session, server: Server) -> OpenRun:
    """An open round; the server speaks with its first client."""
    rows = add_open_run(session, execution=Execution.REMOTE)
    credential = issue_credential(session, session.get_one(Client, rows.client_ids[0]))
    session.commit()
    server.http.headers["Authorization"] = f"Bearer {credential}"
    return rows


def container(size_mib: int, client_id: UUID) -> Iterator[bytes]:
    """An update with one tensor of zeros, a MiB at a time."""
    size = size_mib * MEBIBYTE
    entry = {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}
    values = {
        "message": "update",
        "client_id": str(client_id),
        "round_number": 1,
        "num_examples": 8,
        "metrics": {},
    }
    metadata = {"fedbraid": json.dumps(values)}
    header = json.dumps({"__metadata__": metadata, "zeros": entry}).encode()
    yield struct.pack("<Q", len(header)) + header
    for _ in range(size_mib):
        yield bytes(MEBIBYTE)


def send_and_fetch(server: Server, session: Session, rows: OpenRun, size_mib: int) -> int:
    """Uploads a container, and downloads it as the client's adapter; gives the bytes that came."""
    update_id = rows.update_ids[0]
    receipt = server.http.put(
        f"/agent/updates/{update_id}/shared?fence=1",
        content=container(size_mib, rows.client_ids[0]),
        headers={"Content-Type": SHARED_MEDIA_TYPE},
    )
    assert receipt.status_code == 200, receipt.text
    session.get_one(ClientUpdate, update_id).adapter_sha256 = receipt.json()["sha256"]
    session.commit()
    path = f"/runs/{rows.run_id}/clients/{rows.client_ids[0]}/adapter"
    received = 0
    for headers in ({}, {"Range": "bytes=1-"}):
        with server.http.stream("GET", path, headers=headers) as response:
            received += sum(len(chunk) for chunk in response.iter_bytes())
    assert received == 2 * receipt.json()["size_bytes"] - 1
    return received


def test_memory_does_not_follow_the_size(server: Server, session: Session, rows: OpenRun) -> None:
    assert server.http.post("/agent/lease", json={"agent": "here"}).json()["work"]
    send_and_fetch(server, session, rows, 9)  # everything is loaded now, and has been used
    before = server.peak_mib()
    received = send_and_fetch(server, session, rows, SIZE_MIB)
    growth = server.peak_mib() - before
    logger.info("%d MiB received, %.1f MiB more at the peak", received / MEBIBYTE, growth)
    assert growth < ALLOWED_MIB
