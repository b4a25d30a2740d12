"""Bearer secrets of users (sessions, personal tokens) and of clients (credentials)."""

from datetime import datetime
from uuid import UUID

from sqlalchemy import CheckConstraint, ForeignKey, func
from sqlalchemy.orm import Mapped, mapped_column

from backend.contracts.users import TokenScope
from backend.db.base import Base, enum_column
from backend.db.ids import new_id


class Token(Base):
    """A bearer secret, kept as SHA-256 only; it belongs to one user or to one client.

    A user's token with a `scope` is a personal token for programs, one without a session.
    """

    __tablename__ = "tokens"
    __table_args__ = (
        CheckConstraint("(user_id IS NULL) <> (client_id IS NULL)", name="one_owner"),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True, default=new_id)
    secret_hash: Mapped[str] = mapped_column(unique=True)
    user_id: Mapped[UUID | None] = mapped_column(ForeignKey("users.id"), index=True)
    client_id: Mapped[UUID | None] = mapped_column(ForeignKey("clients.id"), index=True)
    name: Mapped[str | None]  # of a personal token
    scope: Mapped[TokenScope | None] = mapped_column(enum_column(TokenScope))
    address: Mapped[str | None]  # from where a session was opened
    last_used_at: Mapped[datetime | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    expires_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]
