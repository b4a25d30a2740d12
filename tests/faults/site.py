"""A whole platform with one remote client's agent, in reach of the fault injection.

Real PostgreSQL and Redis, the API over HTTP, two training workers, a control worker, the sweep and
an agent behind a bad line. What dies is started again, as `fedbraid up` or an init system would.
"""

import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from multiprocessing.context import ForkServerContext
from pathlib import Path
from uuid import UUID

import httpx
from celery import Celery
from pydantic import SecretStr
from redis import Redis
from redis.exceptions import RedisError
from sqlalchemy import text
from sqlalchemy.exc import OperationalError

from backend.api_client import ApiClient
from backend.contracts.base_models import BaseModelRef
from backend.contracts.clients import ClientRegister, EnrolmentKeyCreate
from backend.contracts.datasets import BuiltinDataset, BuiltinTaskName
from backend.contracts.enums import TaskKind
from backend.contracts.federations import FederationCreate
from backend.contracts.jobs import Queue
from backend.db.migrate import upgrade
from backend.db.session import SessionFactory, create_database_engine, create_session_factory
from backend.embedded import EmbeddedPostgres, EmbeddedRedis
from backend.jobs import create_celery
from backend.local import programs
from backend.local.administrator import ensure_administrator
from backend.local.processes import ChildProcess
from backend.local.programs import Deployment
from backend.settings import Settings
from backend.storage import BlobStore, open_blob_store
from tests.faults.bad_line import BadLine
from tests.faults.plan import Service
from tests.faults.programs import Program, fork_context
from tests.running_platform import PASSWORD, free_port

START_SECONDS = 180.0
MODEL = "tiny_vit"
ROWS = {"num_train": 8, "num_validation": 4, "num_test": 4}
NUM_MANAGED = 2
REMOTE = "remote"
VARIABLES = {
    "FEDBRAID_LEASE_SECONDS": "3",
    "FEDBRAID_SWEEP_INTERVAL_SECONDS": "0.3",
    # As many attempts as the faults of a repetition may cost: giving up is another test's matter.
    "FEDBRAID_MAX_ATTEMPTS": "1000",
    "FEDBRAID_REQUESTS_PER_MINUTE": "1000000",
    "FEDBRAID_REQUESTS_PER_MINUTE_PER_ADDRESS": "1000000",
    "FEDBRAID_CHECKPOINT_INTERVAL_SECONDS": "0",
    "OMP_NUM_THREADS": "1",
}


class DiedByItselfError(AssertionError):
    """A program ended although nobody killed it."""


class Site:
    """The running platform; see `open_site`."""

    def __init__(
        self, deployment: Deployment, services: dict[Service, ChildProcess], line: BadLine
    ) -> None:
        self.deployment = deployment
        self.line = line
        self.programs: dict[str, Program] = {}
        self._engine = create_database_engine(deployment.database_url)
        self.session_factory: SessionFactory = create_session_factory(self._engine)
        self.store: BlobStore = open_blob_store(deployment.blob_url)
        self.broker: Celery = create_celery(Settings(redis_url=SecretStr(deployment.redis_url)))
        self.api = ApiClient(deployment.api_url)
        self.federation_id: UUID
        self._services = services

    def tend(self) -> None:
        """Starts what was killed and whose time has come.

        Raises:
            DiedByItselfError: a program ended without being killed; it is started again.
        """
        now = time.monotonic()
        for program in self.programs.values():
            if program.restart_at is not None:
                if now >= program.restart_at:
                    program.start()
            elif program.exit_status is not None:
                status = program.exit_status
                program.start()
                raise DiedByItselfError(f"{program.name} ended by itself, with status {status}")

    def wait_until_whole(self) -> None:
        """Returns when every program runs and the API answers."""
        self.line.calm()
        _wait_for("the API", self._is_whole)

    def crash(self, service: Service) -> None:
        """Kills a service and starts it again; returns when it answers."""
        process = self._services[service]
        # PostgreSQL's immediate shutdown: nothing is written, the next start recovers.
        kill = signal.SIGQUIT if service is Service.POSTGRES else signal.SIGKILL
        os.kill(process.pid, kill)
        _wait_for(f"the end of {service}", lambda: process.returncode() is not None)
        if service is Service.REDIS:
            shutil.rmtree(self.deployment.home / "redis" / "appendonlydir", ignore_errors=True)
        process.start()
        _wait_for(
            str(service),
            self._database_answers if service is Service.POSTGRES else self._redis_answers,
        )

    def log(self) -> str:
        """The last words of every program."""
        files = sorted((self.deployment.home / "logs").glob("*.log"))
        return "\n".join(f"--- {file.name}\n{file.read_text()[-3000:]}" for file in files)

    def close(self) -> None:
        for program in self.programs.values():
            program.stop()
        self.api.close()
        self.broker.close()
        self._engine.dispose()

    def _is_whole(self) -> bool:
        self.tend()
        try:
            ready = httpx.get(f"{self.deployment.api_url}/readyz", timeout=5).status_code == 200
        except httpx.TransportError:
            return False
        return ready and all(program.restart_at is None for program in self.programs.values())

    def _database_answers(self) -> bool:
        try:
            with self.session_factory() as session:
                session.execute(text("SELECT 1"))
        except OperationalError:
            return False
        return True

    def _redis_answers(self) -> bool:
        try:
            with Redis.from_url(self.deployment.redis_url) as connection:
                return bool(connection.ping())
        except RedisError:
            return False


@contextmanager
def open_site(home: Path) -> Iterator[Site]:
    """Starts everything, with a federation of two managed clients and a remote one.

    Args:
        home: an empty folder for all state and logs.
    """
    context = fork_context()
    with ExitStack() as running:
        postgres = running.enter_context(
            EmbeddedPostgres(home / "postgres", home / "logs" / "postgres.log")
        )
        broker = running.enter_context(EmbeddedRedis(home / "redis", home / "logs" / "redis.log"))
        deployment = _deployment(home, postgres.url, broker.url)
        upgrade(postgres.url)
        ensure_administrator(Settings(home=home, admin_password=SecretStr(PASSWORD)), postgres.url)
        line = running.enter_context(BadLine(deployment.api_url).open())
        services = {Service.POSTGRES: postgres.process, Service.REDIS: broker.process}
        site = Site(deployment, services, line)
        running.callback(site.close)
        commands = [
            programs.worker(deployment, Queue.CONTROL, 1),
            programs.worker(deployment, Queue.TRAIN, 1),
            programs.worker(deployment, Queue.TRAIN, 2),
            programs.sweep(deployment),
            programs.api(deployment),
        ]
        for program in commands:
            started = Program.of(context, program.command, **VARIABLES)
            site.programs[started.name] = started
            started.start()
        for program in commands:
            _wait_for(program.command.name, program.is_ready)
        site.api.sign_in("admin", PASSWORD)
        _found_federation(site, context)
        with site.session_factory() as session:  # a crash shall not replay the migrations
            session.execute(text("CHECKPOINT"))
        yield site


def _deployment(home: Path, database_url: str, redis_url: str) -> Deployment:
    blobs = home / "blobs"
    blobs.mkdir()
    return Deployment(
        home=home,
        database_url=database_url,
        redis_url=redis_url,
        blob_url=blobs.as_uri(),
        api_host="127.0.0.1",
        api_port=free_port(),
        dashboard_host="127.0.0.1",
        dashboard_port=free_port(),  # nobody listens there
        torch_threads=1,
    )


def _found_federation(site: Site, context: ForkServerContext) -> None:
    """Registers the clients, starts the agent, and makes the federation."""
    key = site.api.enrolment_keys.create(EnrolmentKeyCreate(label="faults", max_uses=3)).secret
    task = BuiltinTaskName.HANDWRITTEN_DIGITS
    for number in range(NUM_MANAGED):
        site.api.clients.register(
            ClientRegister(
                enrolment_key=SecretStr(key),
                name=f"managed-{number}",
                base_model=BaseModelRef(source="builtin", id=MODEL),
                lora_rank=4,
                task=TaskKind.IMAGE_CLASSIFICATION,
                dataset=BuiltinDataset(task=task, seed=number, **ROWS),
            )
        )
    folder = site.deployment.home / "premises"
    folder.mkdir()
    rows = ",".join(f"{name}={value}" for name, value in ROWS.items())
    common = [
        *(
            "--model",
            f"builtin:{MODEL}",
            "--data",
            f"builtin:{task.value},seed={NUM_MANAGED},{rows}",
        ),
        *("--credential-file", str(folder / "credential")),
    ]
    environment = {**os.environ, **VARIABLES, "FEDBRAID_ENROLMENT_KEY": key}
    log = site.deployment.log_path("agent")

    def agent(*arguments: str) -> Program:
        arguments = (*arguments, *common)
        return Program(context, "agent", "tests.faults.quick_agent", arguments, environment, log)

    kind = TaskKind.IMAGE_CLASSIFICATION.value
    registration = agent(
        *("register", "--api-url", site.deployment.api_url, "--name", REMOTE),
        *("--task", kind, "--lora-rank", "4"),
    )
    registration.start()
    assert registration.wait() == 0, log.read_text()
    site.programs["agent"] = agent(
        *("run", "--api-url", site.line.url, "--state", str(folder / "state")),
        *("--checkpoint-seconds", "0"),
    )
    site.programs["agent"].start()
    clients = [client.id for client in site.api.clients.list()]
    site.federation_id = site.api.federations.create(
        FederationCreate(name="faults", global_rank=4, client_ids=clients)
    ).id


def _wait_for(what: str, is_there: Callable[[], bool]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not is_there():
        if time.monotonic() > deadline:
            raise AssertionError(f"{what} is not there after {START_SECONDS:.0f} s")
        time.sleep(0.05)
