"""Measured values."""

from datetime import datetime
from uuid import UUID

from sqlalchemy import ForeignKey, Index, func, text
from sqlalchemy.orm import Mapped, mapped_column

from backend.contracts.metrics import MetricName
from backend.db.base import Base, enum_column
from backend.db.models.event import journal_sequence


class Metric(Base):
    """One measured value of one client in one round; with `step`, one within the round."""

    __tablename__ = "metrics"
    __table_args__ = (
        Index("ix_metrics_run_id_id", "run_id", "id"),
        Index("ix_metrics_run_id_name", "run_id", "name", postgresql_where=text("step IS NULL")),
    )

    id: Mapped[int] = mapped_column(
        journal_sequence, primary_key=True, server_default=journal_sequence.next_value()
    )
    run_id: Mapped[UUID] = mapped_column(ForeignKey("runs.id"))
    client_id: Mapped[UUID | None] = mapped_column(ForeignKey("clients.id"))
    round_number: Mapped[int]
    step: Mapped[int | None]  # null: one value for the whole round
    name: Mapped[MetricName] = mapped_column(enum_column(MetricName))
    value: Mapped[float]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
