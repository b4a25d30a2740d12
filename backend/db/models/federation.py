"""Federations."""

from datetime import datetime
from uuid import UUID

from sqlalchemy import ForeignKey, func
from sqlalchemy.orm import Mapped, mapped_column, relationship

from backend.contracts.federations import Visibility
from backend.db.base import Base, enum_column
from backend.db.ids import new_id
from backend.db.models.client import Client


class Federation(Base):
    """Who works together, and the rank R of what they share."""

    __tablename__ = "federations"

    id: Mapped[UUID] = mapped_column(primary_key=True, default=new_id)
    name: Mapped[str] = mapped_column(unique=True)
    description: Mapped[str]
    global_rank: Mapped[int]
    visibility: Mapped[Visibility] = mapped_column(
        enum_column(Visibility), default=Visibility.MEMBERS, server_default="platform"
    )
    # Null: as the settings of the platform say.
    quota_bytes: Mapped[int | None]
    retention_days: Mapped[float | None]
    retention_rounds: Mapped[int | None]
    # Updates without a valid signature of their client are refused.
    require_signatures: Mapped[bool] = mapped_column(default=False, server_default="false")
    # Null: the built-in probe texts.
    probe_set_sha256: Mapped[str | None] = mapped_column(ForeignKey("blobs.sha256"))
    probe_set_at: Mapped[datetime | None]
    probe_set_by: Mapped[UUID | None] = mapped_column(ForeignKey("users.id"))
    created_by: Mapped[UUID] = mapped_column(ForeignKey("users.id"))
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())

    clients: Mapped[list[Client]] = relationship(secondary="memberships", order_by=Client.id)
