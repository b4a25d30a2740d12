"""Participants."""

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import ForeignKey, func
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from backend.contracts.enums import Execution, TaskKind
from backend.db.base import Base, enum_column
from backend.db.ids import new_id


class Client(Base):
    """A participant: its base model, its adapter's size, its task and its data set."""

    __tablename__ = "clients"

    id: Mapped[UUID] = mapped_column(primary_key=True, default=new_id)
    name: Mapped[str] = mapped_column(unique=True)
    execution: Mapped[Execution] = mapped_column(enum_column(Execution))
    base_model: Mapped[dict[str, Any]]  # contracts.base_models.BaseModelRef
    architecture: Mapped[dict[str, Any]]  # contracts.base_models.Architecture
    lora_rank: Mapped[int]
    lora_alpha: Mapped[float]
    task: Mapped[TaskKind] = mapped_column(enum_column(TaskKind))
    # contracts.datasets.DatasetRef; SQL NULL until there is one
    dataset: Mapped[dict[str, Any] | None] = mapped_column(JSONB(none_as_null=True))
    # What a remote client declares, because the platform sees neither its model nor its data:
    # role -> contracts.base_models.ModuleShape, and the number of training rows.
    modules: Mapped[dict[str, Any] | None] = mapped_column(JSONB(none_as_null=True))
    num_examples: Mapped[int | None]
    enrolment_key_id: Mapped[UUID] = mapped_column(ForeignKey("enrolment_keys.id"))
    # Until an operator approves it, the client is in no federation.
    is_pending: Mapped[bool] = mapped_column(default=False, server_default="false")
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    last_seen_at: Mapped[datetime | None]
