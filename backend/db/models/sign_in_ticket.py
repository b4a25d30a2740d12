"""Tickets with which a browser that comes back from the sign-in service gets its session."""

from datetime import datetime
from uuid import UUID

from sqlalchemy import ForeignKey
from sqlalchemy.orm import Mapped, mapped_column

from backend.db.base import Base


class SignInTicket(Base):
    """A ticket, kept as SHA-256 only; its row goes when it is redeemed."""

    __tablename__ = "sign_in_tickets"

    secret_hash: Mapped[str] = mapped_column(primary_key=True)
    user_id: Mapped[UUID] = mapped_column(ForeignKey("users.id"))
    expires_at: Mapped[datetime]
