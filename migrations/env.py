"""Runs migrations over the connection that `backend.db.migrate` gives, or one of `DATABASE_URL`."""

from alembic import context
from sqlalchemy import Connection, NullPool, create_engine, text

import backend.db.models  # noqa: F401 - registers the tables
from backend.db.base import Base
from backend.settings import get_settings

LOCK = 0x46454442524D  # one program migrates at a time, others wait and then find nothing to do


def run(connection: Connection) -> None:
    context.configure(connection=connection, target_metadata=Base.metadata, compare_type=True)
    with context.begin_transaction():
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": LOCK})
        context.run_migrations()


given = context.config.attributes.get("connection")
if given is not None:
    run(given)
else:
    url = get_settings().database_url
    if url is None:
        raise ValueError("DATABASE_URL is not set")
    with create_engine(url.get_secret_value(), poolclass=NullPool).begin() as own:
        run(own)
