"""Keys with which clients sign what they send."""

from datetime import datetime
from uuid import UUID

from sqlalchemy import ForeignKey, UniqueConstraint, func
from sqlalchemy.orm import Mapped, mapped_column

from backend.db.base import Base
from backend.db.ids import new_id


class SigningKey(Base):
    """A client's public Ed25519 key; the newest one that is not retired verifies new updates."""

    __tablename__ = "signing_keys"
    __table_args__ = (UniqueConstraint("client_id", "fingerprint"),)

    id: Mapped[UUID] = mapped_column(primary_key=True, default=new_id)
    client_id: Mapped[UUID] = mapped_column(ForeignKey("clients.id"))
    public_key: Mapped[str]  # base64 of 32 bytes
    fingerprint: Mapped[str]  # SHA-256 of these bytes
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    retired_at: Mapped[datetime | None]
