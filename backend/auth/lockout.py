"""Slows down guessing: after some failures in a row a name is locked for a while.

Names of nobody are counted alike, so that a lock does not tell who exists.
"""

from datetime import UTC, datetime, timedelta

from sqlalchemy import delete, func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from backend.db.models import SignInFailure

MAX_FAILURES = 5
LOCK = timedelta(minutes=15)


def locked_until(session: Session, username: str) -> datetime | None:
    """Until when nobody may sign in under this name; None: not locked."""
    return session.scalar(
        select(SignInFailure.locked_until).where(
            SignInFailure.username == username, SignInFailure.locked_until > func.now()
        )
    )


def record_failure(session: Session, username: str) -> bool:
    """Counts one more failure, and says whether it locked the name.

    The caller commits: the count must outlive the refusal.
    """
    row = insert(SignInFailure).values(username=username, num_failures=1)
    count = session.execute(
        row.on_conflict_do_update(
            index_elements=[SignInFailure.username],
            set_={"num_failures": SignInFailure.num_failures + 1, "last_at": func.now()},
        ).returning(SignInFailure.num_failures)
    ).scalar_one()
    if count % MAX_FAILURES:
        return False
    failure = session.get_one(SignInFailure, username)
    failure.locked_until = datetime.now(UTC) + LOCK
    return True


def forget_failures(session: Session, username: str) -> None:
    """Starts anew after a sign-in that worked."""
    session.execute(delete(SignInFailure).where(SignInFailure.username == username))
