"""Services and data that tests share: real PostgreSQL and Redis, started once for all tests."""

from collections.abc import Iterator

import pytest
from redis import Redis
from sqlalchemy import Engine, NullPool, create_engine
from sqlalchemy.orm import Session
from starlette.testclient import TestClient

from backend import jobs
from backend.contracts.enums import Role
from backend.db.base import Base
from backend.db.migrate import upgrade
from backend.db.session import SessionFactory, create_database_engine, create_session_factory
from backend.embedded import EmbeddedPostgres, EmbeddedRedis
from backend.main import create_app
from backend.settings import Settings, get_settings
from backend.storage import BlobStore, open_blob_store
from tests.factories import Caller, signed_in


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedPostgres]:
    with EmbeddedPostgres(tmp_path_factory.mktemp("postgres")) as server:
        engine = create_engine(server.url, isolation_level="AUTOCOMMIT", poolclass=NullPool)
        with engine.connect() as connection:  # nobody needs these data after a power cut
            connection.exec_driver_sql("ALTER SYSTEM SET fsync = off")
            connection.exec_driver_sql("SELECT pg_reload_conf()")
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
        # Without triggers: the audit trail lets nobody else remove its rows.
        connection.exec_driver_sql("SET LOCAL session_replication_role = 'replica'")
        for table in reversed(Base.metadata.sorted_tables):
            connection.execute(table.delete())


@pytest.fixture
def session_factory(engine: Engine) -> SessionFactory:
    return create_session_factory(engine)


@pytest.fixture
def session(session_factory: SessionFactory) -> Iterator[Session]:
    with session_factory() as session:
        yield session


@pytest.fixture(scope="session")
def settings(
    postgres: EmbeddedPostgres,
    redis_server: EmbeddedRedis,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Settings]:
    """Settings of all tests, also for whoever reads the environment."""
    folder = tmp_path_factory.mktemp("platform")
    caches = (get_settings, jobs._producer)
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("DATABASE_URL", postgres.url)
        environment.setenv("REDIS_URL", redis_server.url)
        environment.setenv("BLOB_URL", (folder / "blobs").as_uri())
        environment.setenv("FEDBRAID_HOME", str(folder / "home"))
        for limited in ("REQUESTS_PER_MINUTE", "REQUESTS_PER_MINUTE_PER_ADDRESS"):
            environment.setenv(f"FEDBRAID_{limited}", "1000000")  # all tests are one address
        environment.setenv("FEDBRAID_SIGN_INS_PER_MINUTE_PER_ADDRESS", "1000000")
        for cached in caches:
            cached.cache_clear()
        yield get_settings()
    for cached in caches:
        cached.cache_clear()


@pytest.fixture(scope="session")
def blob_store(settings: Settings) -> BlobStore:
    assert settings.blob_url is not None
    return open_blob_store(settings.blob_url)


@pytest.fixture
def broker(redis_server: EmbeddedRedis) -> Iterator[Redis]:
    """Redis, empty before and after."""
    with Redis.from_url(redis_server.url, decode_responses=True) as connection:
        connection.flushdb()
        yield connection
        connection.flushdb()


@pytest.fixture(scope="session")
def http(settings: Settings, migrated_engine: Engine) -> Iterator[TestClient]:
    """The application in this process; it has the tables that `engine` empties."""
    with TestClient(create_app(settings), raise_server_exceptions=False) as client:
        yield client


@pytest.fixture
def anonymous(http: TestClient, engine: Engine) -> Caller:
    """Somebody without a token, on a platform without rows."""
    return Caller(http)


@pytest.fixture
def admin(anonymous: Caller, session: Session) -> Caller:
    return signed_in(anonymous, session, Role.ADMINISTRATOR)


@pytest.fixture
def operator(anonymous: Caller, session: Session) -> Caller:
    return signed_in(anonymous, session, Role.OPERATOR)


@pytest.fixture
def viewer(anonymous: Caller, session: Session) -> Caller:
    return signed_in(anonymous, session, Role.VIEWER)
