"""Brings a database to the newest schema, or back."""

from collections.abc import Callable
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import NullPool, create_engine

SCRIPTS = Path(__file__).parents[2] / "migrations"


def upgrade(database_url: str, revision: str = "head") -> None:
    """Applies all missing migrations; several processes may do so at once.

    Args:
        database_url: `postgresql+psycopg://user:password@host:port/name`.
        revision: where to stop.
    """
    _run(database_url, command.upgrade, revision)


def downgrade(database_url: str, revision: str) -> None:
    """Takes migrations back; the data of removed tables and columns is lost.

    Args:
        database_url: `postgresql+psycopg://user:password@host:port/name`.
        revision: the last one to keep; `base`: none.
    """
    _run(database_url, command.downgrade, revision)


def newest_revision() -> str:
    """The revision to which this version of the code brings a database."""
    return str(ScriptDirectory.from_config(_config()).get_current_head())


def knows_revision(revision: str) -> bool:
    """True for this version's revision and older ones."""
    scripts = ScriptDirectory.from_config(_config())
    return revision in {script.revision for script in scripts.walk_revisions()}


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(SCRIPTS).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config


def _run(database_url: str, action: Callable[[Config, str], None], revision: str) -> None:
    config = _config()
    engine = create_engine(database_url, poolclass=NullPool)
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        action(config, revision)
