"""What the control plane carries: registrations, leases, heartbeats and uploads of many clients.

    python benchmarks/control_plane.py [--clients 1000] [--concurrency 64]

A real API process (uvicorn, one process) over a real PostgreSQL and Redis, all on this machine, and
simulated remote clients that share its cores. Each line is one JSON object; the peer is a bare
endpoint of uvicorn that only reads the body, called in the same way right before. The limits on
requests are raised: every simulated client has one address.
"""

import argparse
import asyncio
import json
import math
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import psutil
import torch
from pydantic import SecretStr

from backend.api_client import ApiClient
from backend.contracts.agent import SHARED_MEDIA_TYPE
from backend.contracts.clients import EnrolmentKeyCreate
from backend.contracts.enums import Execution, TaskKind
from backend.contracts.federations import FederationCreate
from backend.contracts.params.lora import FedItParams
from backend.contracts.runs import RunCreate
from backend.db.migrate import upgrade
from backend.embedded import EmbeddedPostgres, EmbeddedRedis
from backend.local import programs
from backend.local.administrator import ensure_administrator
from backend.local.ports import require_port
from backend.local.processes import ChildProcess, Command
from backend.local.programs import Deployment, Program
from backend.settings import Settings, get_settings
from worker import rounds
from worker.agent.premises import open_premises
from worker.federated.types import ClientUpdate
from worker.federated.wire import encode_update
from worker.platform import open_platform

PASSWORD = "a password for one benchmark"  # noqa: S105 (of a platform that lives for a minute)
START_SECONDS = 300.0
UPLOAD_BYTES = 2**20
NUM_EXAMPLES = 8
LIMITS = (
    "FEDBRAID_REQUESTS_PER_MINUTE",
    "FEDBRAID_REQUESTS_PER_MINUTE_PER_ADDRESS",
    "FEDBRAID_SIGN_INS_PER_MINUTE_PER_ADDRESS",
)


@dataclass(frozen=True)
class Call:
    """One request of one simulated client."""

    method: str
    path: str
    json: Any = None
    content: bytes | None = None
    token: str | None = None


@dataclass(frozen=True)
class Timing:
    """What many calls took."""

    per_second: float
    p50_seconds: float
    p99_seconds: float
    answers: list[Any]


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--clients", type=int, default=1000)
    parser.add_argument("--concurrency", type=int, default=64, help="requests under way at once")
    options = parser.parse_args()
    with ExitStack() as running, tempfile.TemporaryDirectory(prefix="fedbraid-") as folder:
        home = Path(folder).resolve()
        postgres = running.enter_context(EmbeddedPostgres(home / "postgres"))
        redis = running.enter_context(EmbeddedRedis(home / "redis"))
        deployment = _deploy(home, postgres.url, redis.url)
        api = _start(running, programs.api(deployment))
        bare, bare_url = _start_bare(running, home)
        bench = Bench(deployment.api_url, bare_url, options.concurrency)
        _measure(bench, deployment, options.clients)
        peer_bytes = psutil.Process(bare.pid).memory_info().rss
        api_bytes = psutil.Process(api.pid).memory_info().rss
        report("control_plane_api_memory", api_bytes, "B", peer_bytes)
        running.close()  # before the folder goes


def _measure(bench: "Bench", deployment: Deployment, num_clients: int) -> None:
    with ApiClient(deployment.api_url) as operator:
        operator.sign_in("admin", PASSWORD)
        key = operator.enrolment_keys.create(
            EnrolmentKeyCreate(label="benchmark", max_uses=num_clients)
        )
        body = _registration(key.secret)
        registered = bench.measure(
            "registrations",
            [
                Call("POST", "/clients/register", json={**body, "name": f"client-{number}"})
                for number in range(num_clients)
            ],
        )
        ids = [answer["client"]["id"] for answer in registered]
        tokens = [answer["credential"] for answer in registered]
        federation = operator.federations.create(
            FederationCreate(
                name="benchmark",
                global_rank=2,
                client_ids=[UUID(client_id) for client_id in ids],
            )
        )
        run = operator.federations.create_run(
            federation.id, RunCreate(strategy=FedItParams(), num_rounds=1)
        )
        operator.runs.start(run.id)
    rounds.open_round(open_platform(get_settings()), run.id)  # a control worker's part
    leased = bench.measure(
        "leases", [Call("POST", "/agent/lease", json={}, token=token) for token in tokens]
    )
    work = [
        (answer["work"]["client_update_id"], token)
        for answer, token in zip(leased, tokens, strict=True)
    ]
    beat = {"fence": 1, "stage": "training", "step": 1, "num_steps": 2, "values": {"train_loss": 1}}
    bench.measure(
        "heartbeats",
        [
            Call("POST", f"/agent/updates/{update_id}/heartbeat", json=beat, token=token)
            for update_id, token in work
        ],
    )
    bench.measure(
        "uploads_of_1_mb",
        [
            Call(
                "PUT",
                f"/agent/updates/{update_id}/shared?fence=1",
                content=_upload(ids[n], n),
                token=token,
            )
            for n, (update_id, token) in enumerate(work)
        ],
    )


class Bench:
    """Sends the same calls to the bare endpoint and to the API, and reports both."""

    def __init__(self, api_url: str, bare_url: str, concurrency: int) -> None:
        self._api_url = api_url
        self._bare_url = bare_url
        self._concurrency = concurrency

    def measure(self, name: str, calls: Sequence[Call]) -> list[Any]:
        """Reports calls per second and how long one takes; gives the API's answers."""
        peer = asyncio.run(_send_all(self._bare_url, calls, self._concurrency))
        mine = asyncio.run(_send_all(self._api_url, calls, self._concurrency))
        prefix = f"control_plane_{name}"
        report(f"{prefix}_per_second", mine.per_second, "1/s", peer.per_second)
        report(f"{prefix}_p50", mine.p50_seconds, "s", peer.p50_seconds)
        report(f"{prefix}_p99", mine.p99_seconds, "s", peer.p99_seconds)
        return mine.answers


async def _send_all(root: str, calls: Sequence[Call], concurrency: int) -> Timing:
    waiting = asyncio.Semaphore(concurrency)
    limits = httpx.Limits(max_connections=concurrency, max_keepalive_connections=concurrency)
    async with httpx.AsyncClient(base_url=root, limits=limits, timeout=120.0) as http:
        start = time.perf_counter()
        done = await asyncio.gather(*(_send(http, waiting, call) for call in calls))
        seconds = time.perf_counter() - start
    each = sorted(taken for taken, _ in done)
    return Timing(
        per_second=len(calls) / seconds,
        p50_seconds=statistics.median(each),
        p99_seconds=each[math.ceil(0.99 * len(each)) - 1],
        answers=[answer for _, answer in done],
    )


async def _send(
    http: httpx.AsyncClient, waiting: asyncio.Semaphore, call: Call
) -> tuple[float, Any]:
    headers = {} if call.token is None else {"Authorization": f"Bearer {call.token}"}
    if call.content is not None:
        headers["Content-Type"] = SHARED_MEDIA_TYPE
    async with waiting:
        start = time.perf_counter()
        answer = await http.request(
            call.method,
            "/api/v1" + call.path,
            json=call.json,
            content=call.content,
            headers=headers,
        )
        seconds = time.perf_counter() - start
    if answer.is_error:
        raise SystemExit(f"{call.method} {call.path}: {answer.status_code} {answer.text}")
    return seconds, answer.json() if answer.content else None


def _registration(secret: str) -> dict[str, Any]:
    """What the agent of a machine with `tiny_vit` would send."""
    kind = TaskKind.IMAGE_CLASSIFICATION
    premises = open_premises(
        "builtin:tiny_vit", f"builtin:handwritten_digits,num_train={NUM_EXAMPLES}", kind
    )
    return {
        "enrolment_key": secret,
        "execution": Execution.REMOTE.value,
        "base_model": premises.public_model().model_dump(mode="json"),
        "architecture": premises.architecture.model_dump(mode="json"),
        "modules": {
            role: shape.model_dump(mode="json")
            for role, shape in premises.declared_modules().items()
        },
        "num_examples": NUM_EXAMPLES,
        "lora_rank": 2,
        "task": kind.value,
    }


def _upload(client_id: str, number: int) -> bytes:
    """An update of 1 MiB that no other client has."""
    shared = {"shared": torch.full((UPLOAD_BYTES // 4,), float(number))}
    return encode_update(ClientUpdate(client_id, 1, NUM_EXAMPLES, shared, {}, {}))


def _deploy(home: Path, database_url: str, redis_url: str) -> Deployment:
    blobs = home / "blobs"
    blobs.mkdir()
    host = "127.0.0.1"
    deployment = Deployment(
        home=home,
        database_url=database_url,
        redis_url=redis_url,
        blob_url=blobs.as_uri(),
        api_host=host,
        api_port=require_port(host, 0, "FEDBRAID_API_PORT"),
        dashboard_host=host,
        dashboard_port=0,
        torch_threads=1,
    )
    os.environ |= dict.fromkeys(LIMITS, "1000000000")
    os.environ |= {"FEDBRAID_HOME": str(home), "FEDBRAID_LEASE_SECONDS": "3600"}
    os.environ |= {"DATABASE_URL": database_url, "REDIS_URL": redis_url}
    os.environ |= {"BLOB_URL": deployment.blob_url, "FEDBRAID_LOG_LEVEL": "WARNING"}
    upgrade(database_url)
    ensure_administrator(Settings(home=home, admin_password=SecretStr(PASSWORD)), database_url)
    return deployment


def _start_bare(running: ExitStack, home: Path) -> tuple[ChildProcess, str]:
    host = "127.0.0.1"
    port = require_port(host, 0, "the port")
    argv = [sys.executable, "-m", "uvicorn", "bare_endpoint:app"]
    argv += ["--app-dir", str(Path(__file__).parent), "--host", host, "--port", str(port)]
    command = Command("bare", [*argv, "--no-access-log"], home / "bare.log")
    url = f"http://{host}:{port}"
    return _start(running, Program(command, lambda: _answers(url))), url


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=2.0).is_success
    except httpx.TransportError:
        return False


def _start(running: ExitStack, program: Program) -> ChildProcess:
    process = ChildProcess(program.command)
    running.callback(process.stop)
    _wait_for(program.command.name, program.is_ready)
    return process


def _wait_for(what: str, is_there: Callable[[], bool]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not is_there():
        if time.monotonic() > deadline:
            raise SystemExit(f"{what} is not there after {START_SECONDS:.0f} s")
        time.sleep(0.05)


def report(bench: str, value: float, unit: str, peer_value: float) -> None:
    """One line of JSON."""
    line = {"bench": bench, "value": value, "unit": unit, "peer": "bare uvicorn endpoint"}
    print(json.dumps(line | {"peer_value": peer_value, "ratio": value / peer_value}), flush=True)


if __name__ == "__main__":
    main()
