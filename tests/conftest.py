"""Services and data that tests share: real PostgreSQL and Redis, started once for all tests."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from backend import jobs
from backend.db.base import Base
from backend.db.migrate import upgrade
from backend.db.session import SessionFactory, create_database_engine, create_session_factory
from backend.embedded import EmbeddedPostgres, EmbeddedRedis
from backend.settings import Settings, get_settings
from backend.storage import BlobStore, open_blob_store


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedPostgres]:
    with EmbeddedPostgres(tmp_path_factory.mktemp("postgres")) as server:
        engine = sa.create_engine(server.url, isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:  # nobody needs these data after a power cut
            connection.exec_driver_sql("ALTER SYSTEM SET fsync = off")
            connection.exec_driver_sql("SELECT pg_reload_conf()")
        engine.dispose()
        yield server


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedRedis]:
    with EmbeddedRedis(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture(scope="session")
def migrated_engine(postgres: EmbeddedPostgres) -> Iterator[Engine]:
    upgrade(postgres.url)
    engine = create_database_engine(postgres.url)
    yield engine
    engine.dispose()


@pytest.fixture
def engine(migrated_engine: Engine) -> Iterator[Engine]:
    """A database with all tables and no rows."""
    yield migrated_engine
    with migrated_engine.begin() as connection:
        for table in reversed(Base.metadata.sorted_tables):
            connection.execute(table.delete())


@pytest.fixture
def session_factory(engine: Engine) -> SessionFactory:
    return create_session_factory(engine)


@pytest.fixture
def session(session_factory: SessionFactory) -> Iterator[Session]:
    with session_factory() as session:
        yield session


@pytest.fixture
def settings(
    postgres: EmbeddedPostgres,
    redis_server: EmbeddedRedis,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Settings]:
    """Settings of this test, also for whoever reads the environment."""
    with ExitStack() as cleanup:
        for cached in (get_settings, jobs._producer):
            cached.cache_clear()
            cleanup.callback(cached.cache_clear)
        monkeypatch.setenv("DATABASE_URL", postgres.url)
        monkeypatch.setenv("REDIS_URL", redis_server.url)
        monkeypatch.setenv("BLOB_URL", (tmp_path / "blobs").as_uri())
        monkeypatch.setenv("FEDBRAID_HOME", str(tmp_path / "home"))
        yield get_settings()


@pytest.fixture
def blob_store(settings: Settings) -> BlobStore:
    assert settings.blob_url is not None
    return open_blob_store(settings.blob_url)
