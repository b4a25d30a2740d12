"""The command line: `fedbraid up`, `demo`, `merge`, `migrate`, `user`, `strategies`, `sweep`."""

import json
import logging
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from importlib.metadata import version as package_version
from pathlib import Path
from types import FrameType
from typing import Annotated
from uuid import UUID

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from backend.api_client.errors import ApiClientError
from backend.archives.exporting import snapshot, stream_archive
from backend.archives.importing import find_owner, import_archive
from backend.audit import record_audit
from backend.auth.principals import SystemPrincipal
from backend.contracts.enums import Role, StrategyName
from backend.contracts.strategies import describe_strategies
from backend.contracts.users import UserCreate
from backend.db.migrate import upgrade
from backend.db.session import SessionFactory, create_database_engine, create_session_factory
from backend.demo.run import DemoOptions, check_options, run_demo
from backend.errors import PlatformError
from backend.local.administrator import USERNAME, ensure_administrator, password_path
from backend.local.errors import LocalError
from backend.local.platform import LocalPlatform, StopRequested, running
from backend.local.ports import prefer_port, require_port
from backend.local.services import blob_url_of, open_database
from backend.logging import configure_logging
from backend.settings import Settings, get_settings
from backend.storage import open_blob_store
from backend.storage.garbage import collect_garbage, find_garbage
from backend.storage.retention import RetentionPolicy, find_expired, give_up_expired
from backend.sweep import run_forever
from backend.users import service as users

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Federated fine-tuning of foundation models that differ in everything.",
)
user_app = typer.Typer(no_args_is_help=True, help="Who may sign in.")
app.add_typer(user_app, name="user")

_out = Console(highlight=False)
_err = Console(stderr=True, highlight=False, soft_wrap=True)

Workers = Annotated[
    int | None,
    typer.Option(
        "--train-workers", min=1, help="Training processes; default: one per core, at most 4."
    ),
]


@app.command()
def up(train_workers: Workers = None) -> None:
    """Start the whole platform on this machine, until Ctrl-C."""
    with _one_line_errors():
        settings = get_settings()
        with running(settings, require_port, train_workers, _say) as platform:
            _say_where(settings, platform)
            while True:
                platform.tend(seconds=3600)


@app.command()
def demo(
    leave: Annotated[bool, typer.Option("--exit", help="End after the last run.")] = False,
    report: Annotated[
        Path | None, typer.Option(help="Write the figures to this JSON file.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of each run.")] = 10,
    seed: Annotated[
        int, typer.Option(min=0, help="Of first weights and order; the data stay as they are.")
    ] = 0,
    strategy: Annotated[
        StrategyName, typer.Option(help="What to compare with local_only.")
    ] = StrategyName.H2TUNE,
    train_workers: Workers = None,
) -> None:
    """Start the platform and run its main job through the REST API."""
    with _one_line_errors():
        settings = get_settings()
        started_at = time.monotonic()
        options = DemoOptions(strategy, rounds, seed, report, started_at)
        check_options(options)
        with running(settings, prefer_port, train_workers, _say) as platform:
            _say_where(settings, platform)
            run_demo(platform, settings, options, _out)
            while not leave:
                platform.tend(seconds=3600)


@app.command()
def migrate() -> None:
    """Bring the database schema up to date.

    Where FEDBRAID_ADMIN_PASSWORD is set and there is no user yet, this also creates the first
    administrator.
    """
    with _one_line_errors():
        settings = get_settings()
        with open_database(settings) as url:
            upgrade(url)
            _say("The database schema is up to date.")
            if settings.admin_password is not None and ensure_administrator(settings, url):
                _say(f"{USERNAME} may sign in with the password of FEDBRAID_ADMIN_PASSWORD.")


@app.command()
def sweep() -> None:
    """Send lost work again, every few seconds, until stopped."""
    with _one_line_errors():
        settings = get_settings()
        configure_logging(settings.log_level)
        stop = threading.Event()

        def end(_number: int, _frame: FrameType | None) -> None:
            stop.set()

        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, end)
        run_forever(settings, stop)


@app.command()
def strategies(
    as_json: Annotated[
        bool, typer.Option("--json", help="With capabilities and all parameters.")
    ] = False,
) -> None:
    """List the strategies, what each of them shares, and whom it can serve together."""
    described = describe_strategies()
    if as_json:
        typer.echo(json.dumps([info.model_dump(mode="json") for info in described], indent=2))
        return
    table = Table("name", "what leaves a client", "clients may differ in", "reference", box=None)
    for info in described:
        allowed = info.capabilities.model_dump(include={"rank", "depth", "width", "task"})
        differences = ", ".join(name for name, is_allowed in allowed.items() if is_allowed)
        table.add_row(info.name, info.shares, differences, info.reference or "")
    _out.print(table)


@app.command("gc")
def collect(
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would be removed.")
    ] = False,
) -> None:
    """Give up what retention no longer keeps, and remove stored bytes that nothing refers to."""
    with _one_line_errors():
        settings = get_settings()
        with open_database(settings) as url:
            upgrade(url)
            store = open_blob_store(blob_url_of(settings))
            engine = create_database_engine(url)
            give_up, sweep_away = (
                (find_expired, find_garbage) if dry_run else (give_up_expired, collect_garbage)
            )
            grace = timedelta(hours=settings.garbage_grace_hours)
            policy = RetentionPolicy(settings.retention_days, settings.retention_rounds)
            expired = give_up(create_session_factory(engine), policy)
            garbage = sweep_away(create_session_factory(engine), store, grace)
            engine.dispose()
    what = "would be removed" if dry_run else "were removed"
    _say(
        f"Retention: bytes of {expired.num_updates} client updates in {expired.num_runs} ended "
        f"runs, {expired.size_bytes} bytes, {'would be' if dry_run else 'were'} given up."
    )
    _say(
        f"{garbage.num_blobs} blobs of {garbage.size_bytes} bytes and {garbage.num_strays} stray "
        f"objects {what}."
    )


@app.command("export-federation")
def export_federation(
    federation_id: UUID,
    to: Annotated[Path, typer.Option("--to", help="The archive to write, a zip file.")],
) -> None:
    """Write a whole federation to one archive: rows, states, updates, adapters; no credentials."""
    with _one_line_errors(), _sessions() as sessions:
        part = to.with_name(to.name + ".part")
        store = open_blob_store(blob_url_of(get_settings()))
        with snapshot(sessions, federation_id) as taken, part.open("wb") as file:
            for chunk in stream_archive(taken, store):
                file.write(chunk)
        size_bytes = part.replace(to).stat().st_size
        with sessions() as session:
            record_audit(
                session,
                SystemPrincipal(),
                "federation.export",
                federation_id,
                name=taken.federation,
            )
            session.commit()
        _say(f"{taken.federation} was written to {to}, {size_bytes} bytes.")


@app.command("import-federation")
def import_federation(
    archive: Path,
    owner: Annotated[
        str | None,
        typer.Option("--as", help="Who made it, for the pages; default: the first administrator."),
    ] = None,
) -> None:
    """Make a federation of an archive: everything, or nothing where something is wrong with it."""
    with _one_line_errors(), _sessions() as sessions, archive.open("rb") as file:
        settings = get_settings()
        store = open_blob_store(blob_url_of(settings))
        with sessions() as session:
            owner_id = find_owner(session, owner)
        made = import_archive(sessions, store, settings, file, SystemPrincipal(), owner_id)
        how = "a copy with new ids" if made.is_copy else "with its ids"
        _say(
            f"{made.name} ({made.federation_id}) was imported, {how}: {made.num_clients} clients, "
            f"{made.num_runs} runs, {made.num_blobs} blobs of {made.size_bytes} bytes. Give each "
            "client a new credential on its page."
        )


@app.command(
    context_settings={
        "allow_extra_args": True,
        "ignore_unknown_options": True,
        "help_option_names": [],  # the program that does it has the help
    }
)
def merge(context: typer.Context) -> None:
    """Write base model and adapter as one checkpoint: ADAPTER --model MODEL --output FOLDER."""
    # A process of its own: this program never loads torch.
    command = [sys.executable, "-P", "-m", "worker.merge", *context.args]
    raise typer.Exit(subprocess.run(command, check=False).returncode)  # noqa: S603 (own program)


@app.command()
def version() -> None:
    """Print the version."""
    typer.echo(package_version("fedbraid"))


@user_app.command("create")
def create_user(
    username: str,
    password: Annotated[
        str,
        typer.Option(
            prompt=True,
            hide_input=True,
            confirmation_prompt=True,
            help="12 characters or more; asked for when left out, which keeps it out of the "
            "history of the shell.",
        ),
    ],
    role: Annotated[Role, typer.Option(help="What the user may do.")] = Role.VIEWER,
) -> None:
    """Add a user."""
    with _one_line_errors(), _session() as session:
        request = UserCreate.model_validate(
            {"username": username, "password": password, "role": role}
        )
        users.create_user(session, request, SystemPrincipal())
        session.commit()
        _say(f"{username} may sign in as {role}.")


@user_app.command("list")
def list_users() -> None:
    """List the users."""
    with _one_line_errors(), _session() as session:
        table = Table("name", "role", "since (UTC)", box=None)
        cursor = None
        while True:
            page = users.list_users(session, cursor, 100)
            for user in page.items:
                table.add_row(user.username, user.role, f"{user.created_at:%Y-%m-%d %H:%M}")
            if page.next_cursor is None:
                break
            cursor = page.items[-1].id
        _out.print(table)


@contextmanager
def _session() -> Iterator[Session]:
    with _sessions() as sessions, sessions() as session:
        yield session


@contextmanager
def _sessions() -> Iterator[SessionFactory]:
    with open_database(get_settings()) as url:
        upgrade(url)
        engine = create_database_engine(url)
        try:
            yield create_session_factory(engine)
        finally:
            engine.dispose()


@contextmanager
def _one_line_errors() -> Iterator[None]:
    """Turns what people can put right into one line on standard error and exit status 1."""
    try:
        yield
    except StopRequested:
        raise typer.Exit(0) from None
    except (LocalError, PlatformError, ApiClientError, ValueError, OSError) as error:
        _fail(_first_sentence(error))
    except OperationalError as error:
        _fail(f"the database does not answer: {str(error.orig).strip().splitlines()[0]}")


def _first_sentence(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False)[0]
        return f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}"
    return " ".join(str(error).split())


def _fail(message: str) -> None:
    _err.print(f"[red]error:[/red] {escape(message)}")
    raise typer.Exit(1)


def _say(message: str) -> None:
    _out.print(escape(message), soft_wrap=True)


def _say_where(settings: Settings, platform: LocalPlatform) -> None:
    _out.print(f"[bold]Dashboard[/bold]  {platform.deployment.dashboard_url}", soft_wrap=True)
    _out.print(f"API        {platform.deployment.api_url}/docs", soft_wrap=True)
    path = password_path(settings)
    if settings.admin_password is not None:
        _say(f"Sign in    as {USERNAME} with the password of FEDBRAID_ADMIN_PASSWORD")
    elif path.exists():
        password = f"password {path.read_text().strip()} (kept in {path})"
        _out.print(f"Sign in    as {USERNAME}, {escape(password)}", soft_wrap=True)
    _say(f"Logs       {settings.home / 'logs'}")
    _say("Ctrl-C stops everything; the next start continues with the same data.")


if __name__ == "__main__":
    logging.captureWarnings(capture=True)
    app()
