"""Brings a database to the newest schema, or back."""

from collections.abc import Callable
from pathlib import Path

from alembic import command
from alembic.config import Config
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


def _run(database_url: str, action: Callable[[Config, str], None], revision: str) -> None:
    config = Config()
    config.set_main_option("script_location", str(SCRIPTS).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    engine = create_engine(database_url, poolclass=NullPool)
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        action(config, revision)
