"""SQL of users."""

from uuid import UUID

from sqlalchemy import Select, func, select
from sqlalchemy.orm import Session

from backend.db.models import User


def find_by_username(session: Session, username: str) -> User | None:
    """The user of this name, locked until the transaction ends."""
    query = select(User).where(User.username == username).with_for_update()
    return session.scalars(query).one_or_none()


def find(session: Session, user_id: UUID) -> User | None:
    """The user with this id, locked until the transaction ends."""
    return session.get(User, user_id, with_for_update=True)


def get(session: Session, user_id: UUID) -> User:
    """The user with this id, which must exist."""
    return session.get_one(User, user_id)


def count(session: Session) -> int:
    """How many users there are."""
    return session.scalar(select(func.count()).select_from(User)) or 0


def list_query() -> Select[User]:
    """All users."""
    return select(User)
