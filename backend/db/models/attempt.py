"""Attempts at client updates."""

from datetime import datetime
from uuid import UUID

from sqlalchemy import ForeignKey, func
from sqlalchemy.orm import Mapped, mapped_column

from backend.contracts.enums import AttemptOutcome
from backend.db.base import Base, enum_column


class Attempt(Base):
    """One worker's try at one client update; `number` is its fencing number."""

    __tablename__ = "attempts"

    client_update_id: Mapped[UUID] = mapped_column(
        ForeignKey("client_updates.id"), primary_key=True
    )
    number: Mapped[int] = mapped_column(primary_key=True)
    worker: Mapped[str]
    started_at: Mapped[datetime] = mapped_column(server_default=func.now())
    heartbeat_at: Mapped[datetime] = mapped_column(server_default=func.now())
    ended_at: Mapped[datetime | None]
    outcome: Mapped[AttemptOutcome | None] = mapped_column(enum_column(AttemptOutcome))
    error: Mapped[str | None]
