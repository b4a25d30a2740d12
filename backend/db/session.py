"""Engines and sessions; one place decides pool sizes and time limits."""

from sqlalchemy import Engine, create_engine
from sqlalchemy.orm import Session, sessionmaker

SessionFactory = sessionmaker[Session]


def create_database_engine(url: str) -> Engine:
    """An engine for PostgreSQL through psycopg.

    Connections are checked before use, so that a restarted server costs a reconnect and not an
    error; no statement may run longer than 30 s and no transaction may idle longer than 60 s.

    Args:
        url: `postgresql+psycopg://user:password@host:port/name`.
    """
    return create_engine(
        url,
        pool_pre_ping=True,
        pool_size=10,
        max_overflow=20,
        connect_args={
            "connect_timeout": 10,
            "options": "-c statement_timeout=30000 -c idle_in_transaction_session_timeout=60000 "
            "-c timezone=UTC",
        },
    )


def create_session_factory(engine: Engine) -> SessionFactory:
    """Sessions whose objects stay readable after commit."""
    return sessionmaker(engine, expire_on_commit=False)
