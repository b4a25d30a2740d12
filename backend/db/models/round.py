"""Rounds."""

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import ForeignKey, UniqueConstraint, func
from sqlalchemy.orm import Mapped, mapped_column, relationship

from backend.contracts.enums import RoundKind, RoundStatus
from backend.db.base import Base, enum_column
from backend.db.ids import new_id
from backend.db.models.run import Run


class Round(Base):
    """One round of a run; the unique pair makes opening it twice harmless."""

    __tablename__ = "rounds"
    __table_args__ = (UniqueConstraint("run_id", "round_number"),)

    id: Mapped[UUID] = mapped_column(primary_key=True, default=new_id)
    run_id: Mapped[UUID] = mapped_column(ForeignKey("runs.id"))
    round_number: Mapped[int]
    kind: Mapped[RoundKind] = mapped_column(enum_column(RoundKind))
    status: Mapped[RoundStatus] = mapped_column(
        enum_column(RoundStatus), default=RoundStatus.OPEN, index=True
    )
    report: Mapped[dict[str, Any]] = mapped_column(default=dict)  # name -> number
    opened_at: Mapped[datetime] = mapped_column(server_default=func.now())
    enqueued_at: Mapped[datetime | None]  # when its aggregation job left
    closed_at: Mapped[datetime | None]
    quorum: Mapped[int | None]  # updates that it needs; null: of all its clients
    deadline_at: Mapped[datetime | None]
    is_overdue: Mapped[bool] = mapped_column(default=False, server_default="false")  # sweep saw it

    run: Mapped[Run] = relationship()
