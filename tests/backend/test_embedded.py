import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest
import redis
import sqlalchemy

from backend.embedded import EmbeddedPostgres, EmbeddedRedis
from backend.local.errors import EmbeddedServiceError, FolderInUseError

HOLD = """
import sys, time
from pathlib import Path
from backend.embedded import EmbeddedPostgres, EmbeddedRedis
with EmbeddedPostgres(Path(sys.argv[1])) as postgres, EmbeddedRedis(Path(sys.argv[2])) as redis:
    print(postgres.url, redis.url, flush=True)
    time.sleep(600)
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder with a short path; pytest's own come close to the limit of sockets."""
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def execute(url: str, statement: str) -> list[tuple[object, ...]]:
    engine = sqlalchemy.create_engine(url)
    with engine.begin() as connection:
        result = connection.execute(sqlalchemy.text(statement))
        rows = [tuple(row) for row in result] if result.returns_rows else []
    engine.dispose()
    return rows


def processes_of(folder: Path) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if process.status() != psutil.STATUS_ZOMBIE and str(folder) in " ".join(
                process.cmdline()
            ):
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    return found


def wait_for_none_of(folder: Path) -> None:
    deadline = time.monotonic() + 20
    while (left := processes_of(folder)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert left == []


def test_postgres_keeps_its_data_and_leaves_no_process(folder: Path) -> None:
    with EmbeddedPostgres(folder / "pg") as postgres:
        assert execute(postgres.url, "SHOW server_version")[0][0].startswith("18")
        assert execute(postgres.url, "SHOW listen_addresses") == [("",)]
        execute(postgres.url, "CREATE TABLE note AS SELECT 'Grüße' AS words")
        assert processes_of(folder) != []
    assert processes_of(folder) == []
    with EmbeddedPostgres(folder / "pg") as postgres:
        assert execute(postgres.url, "SELECT words FROM note") == [("Grüße",)]


@pytest.mark.parametrize("name", ["with space", "ümläut-%41-'\"", "deep/" + "long-name/" * 15])
def test_postgres_works_in_any_folder(folder: Path, name: str) -> None:
    with EmbeddedPostgres(folder / name) as postgres:
        assert execute(postgres.url, "SELECT 1") == [(1,)]
    assert not (folder / name / "socket").is_symlink()


def test_other_users_cannot_enter_the_folder(folder: Path) -> None:
    with EmbeddedPostgres(folder / "pg"), EmbeddedRedis(folder / "redis"):
        assert (folder / "pg").stat().st_mode & 0o077 == 0
        assert (folder / "redis").stat().st_mode & 0o077 == 0
        assert (folder / "redis" / "redis.conf").stat().st_mode & 0o077 == 0


def test_redis_keeps_its_data_and_asks_for_its_password(folder: Path) -> None:
    with EmbeddedRedis(folder) as server:
        with redis.Redis.from_url(server.url) as connection:
            connection.rpush("jobs", "one", "two")
        port = urlsplit(server.url).port
        with redis.Redis(port=port) as stranger, pytest.raises(redis.AuthenticationError):
            stranger.ping()
        listening = {
            connection.laddr.ip
            for process in processes_of(folder)
            for connection in process.net_connections("inet")
            if connection.status == psutil.CONN_LISTEN
        }
        assert listening == {"127.0.0.1"}
    assert processes_of(folder) == []
    with EmbeddedRedis(folder) as server, redis.Redis.from_url(server.url) as connection:
        assert connection.lrange("jobs", 0, -1) == [b"one", b"two"]


@pytest.mark.parametrize("service", [EmbeddedPostgres, EmbeddedRedis])
def test_a_second_user_of_a_folder_is_refused_and_harms_nothing(
    folder: Path, service: type[EmbeddedPostgres] | type[EmbeddedRedis]
) -> None:
    with service(folder):
        before = {process.pid for process in processes_of(folder)}
        with pytest.raises(FolderInUseError, match=f"process {os.getpid()} uses"):
            service(folder).__enter__()
        assert before <= {process.pid for process in processes_of(folder)}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the kernel's bond is Linux only")
@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_services_end_with_their_process_and_start_again(folder: Path, end: signal.Signals) -> None:
    postgres_folder, redis_folder = folder / "pg", folder / "redis"
    command = [sys.executable, "-c", HOLD, str(postgres_folder), str(redis_folder)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as holder:
        assert holder.stdout is not None
        postgres_url, redis_url = holder.stdout.readline().split()
        execute(postgres_url, "CREATE TABLE note AS SELECT 7 AS number")
        with redis.Redis.from_url(redis_url) as connection:
            connection.set("number", 7)
        holder.send_signal(end)
    wait_for_none_of(folder)
    with EmbeddedPostgres(postgres_folder) as postgres, EmbeddedRedis(redis_folder) as server:
        assert execute(postgres.url, "SELECT number FROM note") == [(7,)]
        with redis.Redis.from_url(server.url) as connection:
            assert connection.get("number") == b"7"


def test_a_pid_file_that_names_a_stranger_is_no_obstacle(folder: Path) -> None:
    with EmbeddedPostgres(folder):
        pid_lines = (folder / "data" / "postmaster.pid").read_text().splitlines()
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) as stranger:
        pid_lines[0] = str(stranger.pid)
        (folder / "data" / "postmaster.pid").write_text("\n".join(pid_lines) + "\n")
        with EmbeddedPostgres(folder) as postgres:
            assert execute(postgres.url, "SELECT 1") == [(1,)]
        assert stranger.poll() is None
        stranger.kill()


def test_servers_that_outlived_their_process_are_stopped_first(folder: Path) -> None:
    with EmbeddedPostgres(folder / "pg") as postgres, EmbeddedRedis(folder / "redis"):
        execute(postgres.url, "CREATE TABLE note AS SELECT 7 AS number")
        for name in ("pg", "redis"):
            (folder / name / "lock").unlink()  # as if the process that held it were gone
        before = {process.pid for process in processes_of(folder)}
        with EmbeddedPostgres(folder / "pg") as again, EmbeddedRedis(folder / "redis"):
            assert execute(again.url, "SELECT number FROM note") == [(7,)]
            assert before.isdisjoint(process.pid for process in processes_of(folder))


def test_a_half_made_data_folder_is_made_again(folder: Path) -> None:
    (folder / "data.unfinished" / "base").mkdir(parents=True)
    with EmbeddedPostgres(folder) as postgres:
        assert execute(postgres.url, "SELECT 1") == [(1,)]


def test_data_of_another_version_is_refused(folder: Path) -> None:
    (folder / "data").mkdir()
    (folder / "data" / "PG_VERSION").write_text("17\n")
    with pytest.raises(EmbeddedServiceError, match="written by PostgreSQL 17, this is 18"):
        EmbeddedPostgres(folder).__enter__()


def test_a_server_that_cannot_start_says_why(folder: Path) -> None:
    with EmbeddedPostgres(folder):
        pass
    with (folder / "data" / "postgresql.conf").open("a") as configuration:
        configuration.write("no_such_setting = 1\n")
    with pytest.raises(EmbeddedServiceError, match=r"postgres ended at once: .*postgres\.log"):
        EmbeddedPostgres(folder).__enter__()
    assert processes_of(folder) == []


def test_nothing_is_imported_that_warns() -> None:
    code = "import warnings; warnings.simplefilter('error'); import backend.embedded"
    environment = {key: value for key, value in os.environ.items() if key != "XDG_RUNTIME_DIR"}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
