"""The programs that the platform consists of, as commands for this machine."""

import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import httpx

from backend.contracts.jobs import Queue
from backend.local.errors import LocalError
from backend.local.processes import Command

# -P: a folder named `backend` where the user stands is not ours.
_PYTHON_MODULE = (sys.executable, "-P", "-m")


@dataclass(frozen=True)
class Program:
    """A program with the question whether it is ready."""

    command: Command
    is_ready: Callable[[], bool]


@dataclass(frozen=True)
class Deployment:
    """Where everything is.

    Args:
        home: folder of logs and ready files.
        database_url: SQLAlchemy URL.
        redis_url: of broker and queues.
        blob_url: `file:///folder` or `s3://bucket/prefix`.
        api_host: address on which the API listens.
        api_port: its port.
        dashboard_host: address on which the dashboard listens.
        dashboard_port: its port.
        torch_threads: per training worker.
    """

    home: Path
    database_url: str
    redis_url: str
    blob_url: str
    api_host: str
    api_port: int
    dashboard_host: str
    dashboard_port: int
    torch_threads: int

    @property
    def api_url(self) -> str:
        """Where this machine reaches the API."""
        return _url(self.api_host, self.api_port)

    @property
    def dashboard_url(self) -> str:
        """Where this machine reaches the dashboard."""
        return _url(self.dashboard_host, self.dashboard_port)

    def log_path(self, name: str) -> Path:
        """The log file of a program."""
        return self.home / "logs" / f"{name}.log"


def api(deployment: Deployment) -> Program:
    """The REST API."""
    argv = [
        *(*_PYTHON_MODULE, "uvicorn", "backend.main:create_app", "--factory"),
        *("--host", deployment.api_host, "--port", str(deployment.api_port)),
        *("--no-access-log", "--timeout-graceful-shutdown", "5"),
    ]
    command = Command("api", argv, deployment.log_path("api"), _environment(deployment))
    return Program(command, lambda: _answers(f"{deployment.api_url}/readyz"))


def worker(deployment: Deployment, queue: Queue, number: int) -> Program:
    """A Celery worker of one process for one queue; `number` tells equal ones apart."""
    name = f"worker-{queue.value}-{number}"
    ready_file = deployment.home / "ready" / name
    ready_file.parent.mkdir(parents=True, exist_ok=True)
    ready_file.unlink(missing_ok=True)
    argv = [
        *(*_PYTHON_MODULE, "celery", "--app", "worker.celery_app", "worker"),
        *("--pool", "solo", "--queues", queue.value, "--hostname", f"{name}@%h"),
        *("--include", "worker.readiness", "--without-gossip", "--without-mingle"),
    ]
    threads = str(deployment.torch_threads)
    environment = {
        **_environment(deployment),
        "FEDBRAID_READY_FILE": str(ready_file),
        "FEDBRAID_TORCH_THREADS": threads,
        "OMP_NUM_THREADS": threads,
    }
    command = Command(name, argv, deployment.log_path(name), environment)
    return Program(command, ready_file.exists)


def sweep(deployment: Deployment) -> Program:
    """The periodic search for lost work; nobody waits for it."""
    argv = [*_PYTHON_MODULE, "backend.cli", "sweep"]
    command = Command("sweep", argv, deployment.log_path("sweep"), _environment(deployment))
    return Program(command, lambda: True)


def dashboard(deployment: Deployment) -> Program:
    """The Streamlit pages; they know the API and no secret of the platform."""
    spec = find_spec("dashboard")
    if spec is None or not spec.submodule_search_locations:
        raise LocalError("the dashboard is missing: install 'fedbraid[dashboard]'")
    script = Path(spec.submodule_search_locations[0]) / "streamlit_app.py"
    argv = [
        *(*_PYTHON_MODULE, "streamlit", "run", str(script)),
        *("--server.address", deployment.dashboard_host),
        *("--server.port", str(deployment.dashboard_port)),
        *("--server.headless", "true", "--browser.gatherUsageStats", "false"),
        *("--", "--api-url", deployment.api_url),
    ]
    secret = {"DATABASE_URL", "REDIS_URL", "BLOB_URL", "ADMIN_PASSWORD", "SECRET_KEY"}
    environment = {
        name: value
        for name, value in os.environ.items()
        if name.removeprefix("FEDBRAID_") not in secret and not name.startswith("AWS_")
    }
    command = Command("dashboard", argv, deployment.log_path("dashboard"), environment)
    return Program(command, lambda: _answers(f"{deployment.dashboard_url}/_stcore/health"))


def _environment(deployment: Deployment) -> Mapping[str, str]:
    return {
        **os.environ,
        "FEDBRAID_HOME": str(deployment.home),
        "DATABASE_URL": deployment.database_url,
        "REDIS_URL": deployment.redis_url,
        "BLOB_URL": deployment.blob_url,
    }


def _url(host: str, port: int) -> str:
    loopback = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 (read here, not bound)
    host = loopback.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=2.0).is_success
    except httpx.TransportError:
        return False
