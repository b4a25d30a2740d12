"""Runs."""

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import ForeignKey, UniqueConstraint, func
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column, relationship

from backend.contracts.enums import RunStatus
from backend.db.base import Base, enum_column
from backend.db.ids import new_id
from backend.db.models.federation import Federation


class Run(Base):
    """One execution of one strategy with one seed; `backend.lifecycle` alone sets `status`."""

    __tablename__ = "runs"
    __table_args__ = (UniqueConstraint("comparison_id", "arm", "seed"),)

    id: Mapped[UUID] = mapped_column(primary_key=True, default=new_id)
    federation_id: Mapped[UUID] = mapped_column(ForeignKey("federations.id"), index=True)
    strategy: Mapped[dict[str, Any]]  # contracts.strategies.Params
    training: Mapped[dict[str, Any]]  # contracts.training.TrainingConfig
    privacy: Mapped[dict[str, Any]] = mapped_column(default=dict, server_default="{}")
    robustness: Mapped[dict[str, Any]] = mapped_column(default=dict, server_default="{}")
    round_policy: Mapped[dict[str, Any]] = mapped_column(default=dict, server_default="{}")
    stop_when: Mapped[dict[str, Any] | None] = mapped_column(JSONB(none_as_null=True))
    num_rounds: Mapped[int]
    stopped_after: Mapped[int | None]  # the last training round of a run that stopped early
    seed: Mapped[int]
    status: Mapped[RunStatus] = mapped_column(
        enum_column(RunStatus), default=RunStatus.CREATED, index=True
    )
    round_number: Mapped[int] = mapped_column(default=0)
    state_sha256: Mapped[str | None] = mapped_column(ForeignKey("blobs.sha256"))
    # The probe texts that its federation had when it was made; null: the built-in ones.
    probe_set_sha256: Mapped[str | None] = mapped_column(ForeignKey("blobs.sha256"))
    error: Mapped[str | None]
    comparison_id: Mapped[UUID | None] = mapped_column(ForeignKey("comparisons.id"))
    arm: Mapped[str | None]  # name of the comparison's arm
    created_by: Mapped[UUID] = mapped_column(ForeignKey("users.id"))
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    # When its last job left; the sweep repeats a lost one. Queued and null: it waits for its turn
    # in a comparison.
    enqueued_at: Mapped[datetime | None]
    paused_at: Mapped[datetime | None]
    started_at: Mapped[datetime | None]
    ended_at: Mapped[datetime | None]
    cleared_at: Mapped[datetime | None]  # when the bytes of its rounds were given up
    copied_from: Mapped[UUID | None]  # of an imported run with new ids: the id in the archive

    federation: Mapped[Federation] = relationship()
