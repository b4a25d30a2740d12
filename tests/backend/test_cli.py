import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.orm import Session
from typer.testing import CliRunner

from backend.cli import app
from backend.contracts.enums import StrategyName
from backend.embedded import EmbeddedPostgres, EmbeddedRedis
from backend.settings import get_settings


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A fresh FEDBRAID_HOME without configured services."""
    for name in ("DATABASE_URL", "REDIS_URL", "BLOB_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("FEDBRAID_HOME", str(tmp_path / "home"))
    get_settings.cache_clear()
    yield tmp_path / "home"
    get_settings.cache_clear()


@pytest.fixture
def database(
    home: Path, engine: object, postgres: EmbeddedPostgres, monkeypatch: pytest.MonkeyPatch
) -> EmbeddedPostgres:
    """A configured, migrated, empty database."""
    monkeypatch.setenv("DATABASE_URL", postgres.url)
    get_settings.cache_clear()
    return postgres


def run(*arguments: str, typed: str | None = None) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, arguments, input=typed, env={"COLUMNS": "200"})
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stdout, result.stderr


def refused(*arguments: str) -> str:
    """What a command says that cannot go on: one line on standard error, status 1."""
    status, _, said = run(*arguments)
    assert status == 1
    assert re.fullmatch(r"error: [^\n]+\n", said)
    return said


def test_version() -> None:
    assert run("version") == (0, version("fedbraid") + "\n", "")


def test_strategies_lists_every_one() -> None:
    status, out, _ = run("strategies")
    assert status == 0
    assert all(name in out for name in StrategyName)
    lines = {line.split()[0]: line for line in out.splitlines()}
    assert "rank, depth, width, task" in lines["h2tune"]
    assert re.search(r" rank +\S", lines["flora"])
    assert not re.search("rank|depth|width|task", lines["fedit"])


def test_strategies_as_json_has_the_parameters() -> None:
    _, out, _ = run("strategies", "--json")
    described = {entry["name"]: entry for entry in json.loads(out)}
    assert set(described) == set(StrategyName)
    assert "sparsity" in described["h2tune"]["params_schema"]["properties"]
    for name, entry in described.items():
        assert entry["params_schema"]["properties"]["name"]["const"] == name
        assert entry["title"]
        assert entry["summary"]
        assert entry["shares"]
        assert entry["capabilities"].keys() >= {"rank", "depth", "width", "task"}
    assert described["fedit"]["capabilities"]["rank"] is False
    assert described["flora"]["capabilities"]["rank"] is True
    assert "group_by" in described["flora"]["params_schema"]["properties"]


def test_a_user_is_created_and_listed(database: EmbeddedPostgres) -> None:
    password = "correct horse battery"
    status, out, _ = run("user", "create", "ada", "--role", "operator", "--password", password)
    assert (status, out) == (0, "ada may sign in as operator.\n")
    typed = f"{password}\n{password}\n"
    status, out, _ = run("user", "create", "bob", typed=typed)
    assert status == 0
    assert password not in out
    _, out, _ = run("user", "list")
    assert re.search(r"ada\s+operator", out)
    assert re.search(r"bob\s+viewer", out)


def test_a_taken_name_is_one_line(database: EmbeddedPostgres) -> None:
    arguments = ("user", "create", "ada", "--password", "correct horse battery")
    assert run(*arguments)[0] == 0
    assert "There is a user 'ada' already" in refused(*arguments)


def test_a_short_password_is_refused_and_not_repeated(database: EmbeddedPostgres) -> None:
    said = refused("user", "create", "ada", "--password", "hunter2")
    assert "password" in said
    assert "hunter2" not in said


def test_migrate_creates_the_first_administrator_where_a_password_is_set(
    database: EmbeddedPostgres, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run("migrate") == (0, "The database schema is up to date.\n", "")
    assert session.execute(text("SELECT count(*) FROM users")).scalar_one() == 0
    monkeypatch.setenv("FEDBRAID_ADMIN_PASSWORD", "correct horse battery")
    get_settings.cache_clear()
    _, out, _ = run("migrate")
    assert "admin may sign in" in out
    _, out, _ = run("migrate")
    assert "admin may sign in" not in out


def test_commands_reach_the_embedded_database_while_the_platform_runs(home: Path) -> None:
    arguments = ("user", "create", "ada", "--password", "correct horse battery")
    with EmbeddedPostgres(home / "postgres"):
        assert run(*arguments)[0] == 0
    assert "ada" in run("user", "list")[1]


def test_a_database_that_does_not_answer(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql+psycopg://nobody@127.0.0.1:1/none")
    get_settings.cache_clear()
    assert "the database does not answer" in refused("user", "list")


def test_the_sweep_needs_a_database(home: Path) -> None:
    assert "DATABASE_URL is not set" in refused("sweep")


def test_a_wrong_setting_names_itself(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDBRAID_API_PORT", "70000")
    get_settings.cache_clear()
    assert "api_port" in refused("up")


def test_a_home_in_use_is_refused(home: Path) -> None:
    code = "import sys, time; from pathlib import Path\n" + (
        "from backend.local.folders import hold_folder\n"
        "with hold_folder(Path(sys.argv[1])):\n    print('held', flush=True); time.sleep(600)"
    )
    command = [sys.executable, "-c", code, str(home)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        assert f"process {holder.pid} uses {home}" in refused("up")
        holder.kill()


def test_a_taken_port_is_refused_with_its_setting(
    home: Path,
    postgres: EmbeddedPostgres,
    redis_server: EmbeddedRedis,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        monkeypatch.setenv("DATABASE_URL", postgres.url)
        monkeypatch.setenv("REDIS_URL", redis_server.url)
        monkeypatch.setenv("FEDBRAID_API_PORT", str(listener.getsockname()[1]))
        get_settings.cache_clear()
        assert "another port with FEDBRAID_API_PORT" in refused("up")


def test_one_port_for_two_programs_is_refused(
    home: Path,
    postgres: EmbeddedPostgres,
    redis_server: EmbeddedRedis,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = str(listener.getsockname()[1])
    monkeypatch.setenv("DATABASE_URL", postgres.url)
    monkeypatch.setenv("REDIS_URL", redis_server.url)
    monkeypatch.setenv("FEDBRAID_API_PORT", port)
    monkeypatch.setenv("FEDBRAID_DASHBOARD_PORT", port)
    get_settings.cache_clear()
    assert "FEDBRAID_DASHBOARD_PORT" in refused("up")


def test_the_demo_refuses_to_compare_the_baseline_with_itself(home: Path) -> None:
    assert "h2tune" in refused("demo", "--strategy", "local_only")
    assert not home.exists()


def test_the_demo_refuses_a_report_without_a_folder(home: Path) -> None:
    said = refused("demo", "--report", str(home / "missing" / "report.json"))
    assert "does not exist" in said
    assert not home.exists()


def test_an_unknown_option_is_status_2() -> None:
    assert run("demo", "--no-such-option")[0] == 2


def test_the_command_line_loads_no_tensors() -> None:
    code = "import sys, backend.cli; print({'torch', 'transformers', 'worker'} & set(sys.modules))"
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ
    )
    assert ran.stdout == "set()\n"
