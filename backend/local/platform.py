"""The whole platform on this machine: what `fedbraid up` and `fedbraid demo` have in common."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NamedTuple

from backend.contracts.jobs import Queue
from backend.db.migrate import upgrade
from backend.local import programs
from backend.local.administrator import ensure_administrator
from backend.local.errors import PortInUseError
from backend.local.folders import hold_folder
from backend.local.programs import Deployment
from backend.local.services import Services
from backend.local.supervisor import Supervisor
from backend.settings import Settings

MAX_DEFAULT_WORKERS = 4  # each holds torch and a model in memory
CHECK_SECONDS = 0.5

ChoosePort = Callable[[str, int, str], int]
"""From host, wished port and the setting that wishes it to the port to use."""


class Ports(NamedTuple):
    """On which the platform's own servers listen."""

    api: int
    dashboard: int


class StopRequested(Exception):  # noqa: N818 (not an error)
    """Ctrl-C or a polite kill."""


class LocalPlatform:
    """A running platform, as `running` gives it; `deployment` says where everything is."""

    def __init__(
        self, deployment: Deployment, supervisor: Supervisor, stop_requested: Callable[[], bool]
    ):
        self.deployment = deployment
        self._supervisor = supervisor
        self._stop_requested = stop_requested

    def tend(self, seconds: float) -> None:
        """Waits, restarting what dies meanwhile. Call it all the time.

        Raises:
            StopRequested: somebody wants the end.
        """
        deadline = time.monotonic() + seconds
        while True:
            if self._stop_requested():
                raise StopRequested
            self._supervisor.check()
            left = deadline - time.monotonic()
            if left <= 0:
                return
            time.sleep(min(left, CHECK_SECONDS))


@contextmanager
def running(
    settings: Settings,
    choose_port: ChoosePort,
    num_train_workers: int | None,
    say: Callable[[str], None],
) -> Iterator[LocalPlatform]:
    """The platform, ready to be used; stopped in order at the end.

    Args:
        settings: configured services are used, the others are started in `settings.home`.
        choose_port: what to do about a port that is taken.
        num_train_workers: training processes; None: one per core, at most four.
        say: gets a sentence about each step and each program that died.

    Raises:
        LocalError: something on this machine is in the way.
        StopRequested: it was asked to stop before it was ready.
    """
    with _stop_signals() as stop_requested, hold_folder(settings.home):
        # Before the services: what is taken is refused at once, and none of them takes these.
        ports = _choose_ports(settings, choose_port)
        with _services(settings, ports, say) as services:
            deployment = _deploy(settings, services, ports)
            say("Database: applying migrations")
            upgrade(deployment.database_url)
            ensure_administrator(settings, deployment.database_url)
            supervisor = Supervisor(say, stop_requested)
            for process in services.processes:
                supervisor.adopt(process)
            try:
                say("Programs: starting")
                for program in _programs(deployment, num_train_workers or _default_workers()):
                    supervisor.start(program.command, program.is_ready)
                supervisor.wait_until_ready()
                platform = LocalPlatform(deployment, supervisor, stop_requested)
                platform.tend(0)
                yield platform
            finally:
                say("Stopping")
                supervisor.stop()


@contextmanager
def _services(settings: Settings, ports: Ports, say: Callable[[str], None]) -> Iterator[Services]:
    say(f"Services: starting (state in {settings.home})")
    with Services(settings, avoid_ports=ports) as services:
        yield services


@contextmanager
def _stop_signals() -> Iterator[Callable[[], bool]]:
    """Turns Ctrl-C and polite kills into an answer, so that no step is broken in the middle."""
    requested = threading.Event()

    def note(_number: int, _frame: FrameType | None) -> None:
        requested.set()

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, note) for number in numbers}
    try:
        yield requested.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _choose_ports(settings: Settings, choose_port: ChoosePort) -> Ports:
    ports = Ports(
        choose_port(settings.api_host, settings.api_port, "FEDBRAID_API_PORT"),
        choose_port(settings.dashboard_host, settings.dashboard_port, "FEDBRAID_DASHBOARD_PORT"),
    )
    if ports.api == ports.dashboard:
        raise PortInUseError(
            f"the API and the dashboard cannot both listen on port {ports.api}: choose another one "
            "with FEDBRAID_DASHBOARD_PORT"
        )
    return ports


def _deploy(settings: Settings, services: Services, ports: Ports) -> Deployment:
    return Deployment(
        home=settings.home.resolve(),
        database_url=services.database_url,
        redis_url=services.redis_url,
        blob_url=services.blob_url,
        api_host=settings.api_host,
        api_port=ports.api,
        dashboard_host=settings.dashboard_host,
        dashboard_port=ports.dashboard,
        torch_threads=settings.torch_threads,
    )


def _programs(deployment: Deployment, num_train_workers: int) -> Iterator[programs.Program]:
    """All programs, in the order of their start: the one that stops first comes last."""
    yield programs.worker(deployment, Queue.CONTROL, 1)
    for number in range(1, num_train_workers + 1):
        yield programs.worker(deployment, Queue.TRAIN, number)
    yield programs.sweep(deployment)
    yield programs.api(deployment)
    yield programs.dashboard(deployment)


def _default_workers() -> int:
    cores = os.process_cpu_count() if hasattr(os, "process_cpu_count") else os.cpu_count()
    return min(cores or 1, MAX_DEFAULT_WORKERS)
