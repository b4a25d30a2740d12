"""Comparisons."""

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import ForeignKey, func
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from backend.db.base import Base
from backend.db.ids import new_id


class Comparison(Base):
    """Several strategies times several seeds; it has no state but that of its runs."""

    __tablename__ = "comparisons"

    id: Mapped[UUID] = mapped_column(primary_key=True, default=new_id)
    federation_id: Mapped[UUID] = mapped_column(ForeignKey("federations.id"), index=True)
    name: Mapped[str]
    # contracts.comparisons.Arm, in the order in which they run
    arms: Mapped[list[dict[str, Any]]] = mapped_column(JSONB)
    seeds: Mapped[list[int]] = mapped_column(JSONB)
    training: Mapped[dict[str, Any]]  # contracts.training.TrainingConfig
    num_rounds: Mapped[int]
    created_by: Mapped[UUID] = mapped_column(ForeignKey("users.id"))
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
