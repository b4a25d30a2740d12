"""Typed events, and the number line that events and metrics share."""

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import ForeignKey, Index, Sequence, func
from sqlalchemy.orm import Mapped, mapped_column

from backend.contracts.enums import EventKind
from backend.db.base import Base, enum_column

journal_sequence = Sequence("journal_seq", metadata=Base.metadata)
"""Numbers events and metrics together: a live page needs one cursor for both."""


class Event(Base):
    """Something that happened in a run, as a sentence for people and as data."""

    __tablename__ = "events"
    __table_args__ = (Index("ix_events_run_id_id", "run_id", "id"),)

    id: Mapped[int] = mapped_column(
        journal_sequence, primary_key=True, server_default=journal_sequence.next_value()
    )
    run_id: Mapped[UUID] = mapped_column(ForeignKey("runs.id"))
    kind: Mapped[EventKind] = mapped_column(enum_column(EventKind))
    client_id: Mapped[UUID | None] = mapped_column(ForeignKey("clients.id"))
    round_number: Mapped[int | None]
    message: Mapped[str]
    data: Mapped[dict[str, Any]]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
