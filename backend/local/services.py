"""The services a command works with: the configured ones, or those embedded in FEDBRAID_HOME."""

from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from backend.embedded import EmbeddedPostgres, EmbeddedRedis
from backend.local.errors import FolderInUseError
from backend.local.processes import ChildProcess
from backend.settings import Settings


class Services:
    """Database, queue and blob store for as long as the context lasts.

    `processes` holds the ones that were started here.

    Args:
        settings: of the platform.
        avoid_ports: which other programs will listen on.
    """

    database_url: str
    redis_url: str
    blob_url: str

    def __init__(self, settings: Settings, avoid_ports: Collection[int] = ()):
        self._settings = settings
        self._avoid_ports = avoid_ports
        self._running = ExitStack()
        self.processes: list[ChildProcess] = []

    def __enter__(self) -> "Services":
        settings, logs = self._settings, self._settings.home / "logs"
        with ExitStack() as running:
            if settings.database_url is not None:
                self.database_url = settings.database_url.get_secret_value()
            else:
                postgres = EmbeddedPostgres(_postgres_folder(settings), logs / "postgres.log")
                self.database_url = running.enter_context(postgres).url
                self.processes.append(postgres.process)
            if settings.redis_url is not None:
                self.redis_url = settings.redis_url.get_secret_value()
            else:
                redis = EmbeddedRedis(
                    settings.home / "redis", logs / "redis.log", self._avoid_ports
                )
                self.redis_url = running.enter_context(redis).url
                self.processes.append(redis.process)
            self.blob_url = blob_url_of(settings)
            self._running = running.pop_all()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._running.close()


def blob_url_of(settings: Settings) -> str:
    """Where blobs lie: as configured, else in a folder of the home, which is made."""
    if settings.blob_url is not None:
        return settings.blob_url
    blobs = settings.home / "blobs"
    blobs.mkdir(parents=True, exist_ok=True)
    return blobs.resolve().as_uri()


@contextmanager
def open_database(settings: Settings) -> Iterator[str]:
    """The URL of the database for a short command, also while `fedbraid up` runs."""
    if settings.database_url is not None:
        yield settings.database_url.get_secret_value()
        return
    folder = _postgres_folder(settings)
    with ExitStack() as running:
        try:
            url = running.enter_context(EmbeddedPostgres(folder)).url
        except FolderInUseError:
            url = EmbeddedPostgres.running_url(folder)
        yield url


def _postgres_folder(settings: Settings) -> Path:
    return settings.home / "postgres"
