"""How long the platform stands still after a SIGKILL: of a training worker, and of the API.

    python benchmarks/recovery.py [--lease-seconds 30]

`fedbraid up` runs as users start it. A run trains; then a process is killed, and seconds are
counted until training goes on: for a worker, until the lost client update is at a later step than
before (the lease has to run out first, which the peer value shows); for the API, until it answers
again, while workers train on without it (the peer is how long its first start took).
"""

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar
from uuid import UUID

import httpx
import psutil

from backend.api_client import ApiClient
from backend.contracts.base_models import BaseModelRef
from backend.contracts.clients import ClientRegister, EnrolmentKeyCreate
from backend.contracts.datasets import BUILTIN_TASK_KINDS, BuiltinDataset, BuiltinTaskName
from backend.contracts.enums import UpdateStatus
from backend.contracts.federations import FederationCreate
from backend.contracts.params.lora import LocalOnlyParams
from backend.contracts.runs import ClientUpdate, RunCreate
from backend.contracts.training import TrainingConfig

PASSWORD = "a password for one benchmark"  # noqa: S105 (of a platform that lives for a minute)
PATIENCE_SECONDS = 600.0
LONG = TrainingConfig(local_steps=1_000_000, batch_size=2, max_eval_examples=2)
T = TypeVar("T")


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--lease-seconds", type=float, default=30.0, help="as in production")
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="fedbraid-") as folder,
        running_platform(Path(folder), options.lease_seconds) as (url, process, start_seconds),
        ApiClient(url, max_retries=0) as api,
    ):
        api.sign_in("admin", PASSWORD)
        run_id = start_run(api)
        before = wait_for(lambda: training(api, url, run_id))
        start = time.perf_counter()
        kill(process, "train")
        wait_for(lambda: is_resumed(training(api, url, run_id), before))
        seconds = time.perf_counter() - start
        report("recovery_worker_seconds", seconds, "lease of the attempt", options.lease_seconds)
        start = time.perf_counter()
        kill(process, "backend.main:create_app")
        wait_for(lambda: training(api, url, run_id))
        report(
            "recovery_api_seconds",
            time.perf_counter() - start,
            "start of the whole platform",
            start_seconds,
        )
        api.runs.cancel(run_id)


@contextmanager
def running_platform(
    home: Path, lease_seconds: float
) -> Iterator[tuple[str, psutil.Process, float]]:
    """`fedbraid up` with one worker: the API's address, the process, seconds until ready."""
    port, dashboard_port = free_port(), free_port()
    services = {"DATABASE_URL", "REDIS_URL", "BLOB_URL"}
    environment = {name: value for name, value in os.environ.items() if name not in services} | {
        "FEDBRAID_HOME": str(home),
        "FEDBRAID_API_PORT": str(port),
        "FEDBRAID_DASHBOARD_PORT": str(dashboard_port),
        "FEDBRAID_ADMIN_PASSWORD": PASSWORD,
        "FEDBRAID_LEASE_SECONDS": str(lease_seconds),
        "FEDBRAID_CHECKPOINT_INTERVAL_SECONDS": "1",
    }
    url = f"http://127.0.0.1:{port}"
    argv = [sys.executable, "-m", "backend.cli", "up", "--train-workers", "1"]
    start = time.perf_counter()
    with (home / "up.log").open("wb") as log:
        process = psutil.Popen(argv, env=environment, stdout=log, stderr=subprocess.STDOUT)
    try:
        ready = home / "ready" / "worker-train-1"
        wait_for(lambda: ready.exists() and answers(url))
        yield url, process, time.perf_counter() - start
    finally:
        process.send_signal(signal.SIGINT)
        process.wait()


def start_run(api: ApiClient) -> UUID:
    """A run of one managed client that trains for as long as one looks."""
    key = api.enrolment_keys.create(EnrolmentKeyCreate(label="recovery"))
    task = BuiltinTaskName.HANDWRITTEN_DIGITS
    client = api.clients.register(
        ClientRegister(
            enrolment_key=key.secret,
            name="recovery",
            base_model=BaseModelRef(source="builtin", id="tiny_vit"),
            lora_rank=4,
            task=BUILTIN_TASK_KINDS[task],
            dataset=BuiltinDataset(task=task, num_train=8, num_validation=4, num_test=4),
        )
    ).client
    federation = api.federations.create(
        FederationCreate(name="recovery", global_rank=4, client_ids=[client.id])
    )
    body = RunCreate(strategy=LocalOnlyParams(), num_rounds=1, training=LONG)
    run = api.federations.create_run(federation.id, body)
    api.runs.start(run.id)
    return run.id


def training(api: ApiClient, url: str, run_id: UUID) -> ClientUpdate | None:
    """The client update, if it is being trained now; None too where the API does not answer."""
    if not answers(url):
        return None
    for round_ in api.runs.live(run_id).rounds:
        for update in round_.client_updates:
            if update.status is UpdateStatus.TRAINING and update.stage == "training":
                return update
    return None


def is_resumed(now: ClientUpdate | None, before: ClientUpdate) -> bool:
    """True when a later attempt trains and has come further."""
    return now is not None and now.num_attempts > before.num_attempts and now.step > before.step


def kill(platform: psutil.Process, mark: str) -> None:
    """SIGKILL for the program of a running platform that has `mark` among its arguments."""
    (found,) = [child for child in platform.children() if mark in child.cmdline()]
    found.kill()


def answers(url: str) -> bool:
    """True when the API is ready."""
    try:
        return httpx.get(f"{url}/readyz", timeout=2.0).is_success
    except httpx.TransportError:
        return False


def wait_for(ask: Callable[[], T | None]) -> T:
    """The first answer that is true."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not (answer := ask()):
        if time.monotonic() > deadline:
            raise SystemExit(f"nothing happened for {PATIENCE_SECONDS:.0f} s")
        time.sleep(0.05)
    return answer


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def report(bench: str, value: float, peer: str, peer_value: float) -> None:
    """One line of JSON."""
    line = {"bench": bench, "value": value, "unit": "s", "peer": peer, "peer_value": peer_value}
    print(json.dumps(line | {"ratio": value / peer_value}), flush=True)


if __name__ == "__main__":
    main()
