"""The whole platform as a user starts it: `fedbraid up` in a process of its own."""

import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

from backend.api_client import ApiClient

PASSWORD = "a long enough password"
START_SECONDS = 240
STOP_SECONDS = 60

_GIVEN: set[int] = set()  # free now, and soon to be used by another test's program


@dataclass(frozen=True)
class RunningPlatform:
    """A started platform, its addresses and its processes."""

    home: Path
    api_url: str
    dashboard_url: str
    process: subprocess.Popen[bytes]

    def sign_in(self) -> ApiClient:
        client = ApiClient(self.api_url)
        client.sign_in("admin", PASSWORD)
        return client

    def children(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def workers(self, queue: str) -> list[psutil.Process]:
        """Celery worker processes that listen to a queue."""
        found = []
        for process in self.children():
            try:
                command = process.cmdline()
            except (psutil.NoSuchProcess, psutil.ZombieProcess):
                continue
            if "worker" in command and any(queue in part.split(",") for part in command):
                found.append(process)
        return found

    def log(self) -> str:
        """Everything that its processes have said, for failure messages."""
        files = sorted((self.home / "logs").glob("*.log"))
        return "\n".join(f"--- {file.name}\n{file.read_text()[-4000:]}" for file in files)


def free_port() -> int:
    """One that only a program which asks for it gets.

    Those that a system hands out by itself begin at 32768 (Linux) or 49152. It gives them to
    every outgoing connection and embedded service, also while the program that is to listen here
    is still starting.
    """
    while True:
        port = random.randrange(10_000, 32_768)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        if port not in _GIVEN:
            _GIVEN.add(port)
            return port


@contextmanager
def run_platform(home: Path, **variables: str) -> Iterator[RunningPlatform]:
    """Starts `fedbraid up`, waits until it is ready, and stops it with Ctrl-C at the end.

    Args:
        home: FEDBRAID_HOME.
        variables: more environment variables.
    """
    api_port, dashboard_port = free_port(), free_port()
    home.mkdir(parents=True, exist_ok=True)
    outside = {"DATABASE_URL", "REDIS_URL", "BLOB_URL"}
    environment = {name: value for name, value in os.environ.items() if name not in outside}
    environment |= {
        "FEDBRAID_HOME": str(home),
        "FEDBRAID_API_PORT": str(api_port),
        "FEDBRAID_DASHBOARD_PORT": str(dashboard_port),
        "FEDBRAID_ADMIN_PASSWORD": PASSWORD,
        **variables,
    }
    with (home / "up.log").open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "backend.cli", "up"],
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    platform = RunningPlatform(
        home, f"http://127.0.0.1:{api_port}", f"http://127.0.0.1:{dashboard_port}", process
    )
    try:
        _wait_until_ready(platform)
        yield platform
    finally:
        stop(platform)


def stop(platform: RunningPlatform) -> list[psutil.Process]:
    """Ctrl-C; gives the processes that were left behind (and ends them)."""
    if platform.process.poll() is not None:
        return []
    started = platform.children()
    platform.process.send_signal(signal.SIGINT)
    try:
        platform.process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        platform.process.kill()
        platform.process.wait()
    _, left = psutil.wait_procs(started, timeout=5)
    for process in left:
        process.kill()
    return left


def _wait_until_ready(platform: RunningPlatform) -> None:
    deadline = time.monotonic() + START_SECONDS
    urls = [f"{platform.api_url}/readyz", f"{platform.dashboard_url}/_stcore/health"]
    while time.monotonic() < deadline:
        if platform.process.poll() is not None:
            break
        if all(_answers(url) for url in urls) and platform.workers("train"):
            return
        time.sleep(0.3)
    said = (platform.home / "up.log").read_text()[-4000:]
    raise AssertionError(f"the platform did not start:\n{said}\n{platform.log()}")


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=2).status_code == 200
    except httpx.TransportError:
        return False
