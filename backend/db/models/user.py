"""People who may sign in."""

from datetime import datetime
from uuid import UUID

from sqlalchemy import func
from sqlalchemy.orm import Mapped, mapped_column

from backend.contracts.enums import Role
from backend.db.base import Base, enum_column
from backend.db.ids import new_id


class User(Base):
    """A user; the password is kept as an argon2id hash only."""

    __tablename__ = "users"

    id: Mapped[UUID] = mapped_column(primary_key=True, default=new_id)
    username: Mapped[str] = mapped_column(unique=True)
    password_hash: Mapped[str]
    role: Mapped[Role] = mapped_column(enum_column(Role))
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
