"""Migrations lead from nothing to the tables of the code, and back."""

import subprocess
import sys
from collections.abc import Iterator

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import NullPool, create_engine, inspect, make_url, text

from backend.db.base import Base
from backend.db.migrate import downgrade, upgrade
from backend.embedded import EmbeddedPostgres


@pytest.fixture
def empty_database(postgres: EmbeddedPostgres) -> Iterator[str]:
    server = create_engine(postgres.url, isolation_level="AUTOCOMMIT", poolclass=NullPool)
    with server.connect() as connection:
        connection.execute(text("CREATE DATABASE migrations"))
    yield make_url(postgres.url).set(database="migrations").render_as_string(False)
    with server.connect() as connection:
        connection.execute(text("DROP DATABASE migrations WITH (FORCE)"))


def test_upgrade_makes_what_the_models_say(empty_database: str) -> None:
    upgrade(empty_database)
    engine = create_engine(empty_database, poolclass=NullPool)
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, Base.metadata) == []
        sequences = sorted(inspect(connection).get_sequence_names())
    assert sequences == ["audit_entries_id_seq", "journal_seq"]


def test_downgrade_leaves_nothing(empty_database: str) -> None:
    upgrade(empty_database)
    downgrade(empty_database, "base")
    engine = create_engine(empty_database, poolclass=NullPool)
    with engine.connect() as connection:
        assert inspect(connection).get_table_names() == ["alembic_version"]
        assert inspect(connection).get_sequence_names() == []


def test_several_programs_may_migrate_at_once(empty_database: str) -> None:
    code = "import sys; from backend.db.migrate import upgrade; upgrade(sys.argv[1])"
    programs = [
        subprocess.Popen([sys.executable, "-c", code, empty_database], stderr=subprocess.PIPE)
        for _ in range(3)
    ]
    errors = [program.communicate()[1].decode() for program in programs]
    assert [program.returncode for program in programs] == [0, 0, 0], errors
