"""Clients that do not take part in a run."""

from datetime import datetime
from uuid import UUID

from sqlalchemy import ForeignKey, UniqueConstraint, func
from sqlalchemy.orm import Mapped, mapped_column, relationship

from backend.db.base import Base
from backend.db.ids import new_id
from backend.db.models.client import Client


class Refusal(Base):
    """One client stays out of one run; withdrawing it removes the row, events keep the story."""

    __tablename__ = "refusals"
    __table_args__ = (UniqueConstraint("run_id", "client_id"),)

    id: Mapped[UUID] = mapped_column(primary_key=True, default=new_id)
    run_id: Mapped[UUID] = mapped_column(ForeignKey("runs.id"))
    client_id: Mapped[UUID] = mapped_column(ForeignKey("clients.id"), index=True)
    reason: Mapped[str]
    refused_by: Mapped[str]  # name of the user, or of the client itself
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())

    client: Mapped[Client] = relationship()
