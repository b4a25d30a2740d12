"""Whether what the platform needs is there."""

import redis
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from backend.db.session import SessionFactory
from backend.errors import PlatformError
from backend.settings import Settings
from backend.storage import BlobStore

_NO_BLOB = "0" * 64
_TIMEOUT_SECONDS = 3


def check_services(
    session_factory: SessionFactory, store: BlobStore, settings: Settings
) -> dict[str, bool]:
    """Which of database, Redis and blob store answer."""
    return {
        "database": _database_answers(session_factory),
        "redis": _redis_answers(settings),
        "blob_store": _store_answers(store),
    }


def _database_answers(session_factory: SessionFactory) -> bool:
    try:
        with session_factory() as session:
            session.execute(text("SELECT 1"))
    except SQLAlchemyError:
        return False
    return True


def _redis_answers(settings: Settings) -> bool:
    if settings.redis_url is None:
        return False
    try:
        with redis.Redis.from_url(
            settings.redis_url.get_secret_value(),
            socket_timeout=_TIMEOUT_SECONDS,
            socket_connect_timeout=_TIMEOUT_SECONDS,
        ) as connection:
            return bool(connection.ping())
    except redis.RedisError:
        return False


def _store_answers(store: BlobStore) -> bool:
    try:
        store.exists(_NO_BLOB)
    except PlatformError:
        return False
    return True
