"""One client's part of one round."""

from datetime import datetime
from uuid import UUID

from sqlalchemy import ForeignKey, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column, relationship

from backend.contracts.enums import UpdateStatus
from backend.db.base import Base, enum_column
from backend.db.ids import new_id
from backend.db.models.client import Client
from backend.db.models.round import Round


class ClientUpdate(Base):
    """One client's part of one round.

    `fence` is the number of the newest attempt: only its holder may write a result, and only
    until `lease_expires_at`, which heartbeats move forward.
    """

    __tablename__ = "client_updates"
    __table_args__ = (UniqueConstraint("round_id", "client_id"),)

    id: Mapped[UUID] = mapped_column(primary_key=True, default=new_id)
    round_id: Mapped[UUID] = mapped_column(ForeignKey("rounds.id"))
    client_id: Mapped[UUID] = mapped_column(ForeignKey("clients.id"), index=True)
    status: Mapped[UpdateStatus] = mapped_column(
        enum_column(UpdateStatus), default=UpdateStatus.PENDING, index=True
    )
    fence: Mapped[int] = mapped_column(default=0)
    first_fence: Mapped[int] = mapped_column(default=0, server_default="0")  # as it was resumed
    lease_expires_at: Mapped[datetime | None]
    enqueued_at: Mapped[datetime | None]
    stage: Mapped[str | None]
    step: Mapped[int] = mapped_column(default=0)
    num_steps: Mapped[int] = mapped_column(default=0)
    # Null once retention gave it up.
    plan_sha256: Mapped[str | None] = mapped_column(ForeignKey("blobs.sha256"))
    shared_sha256: Mapped[str | None] = mapped_column(ForeignKey("blobs.sha256"))
    private_sha256: Mapped[str | None] = mapped_column(ForeignKey("blobs.sha256"))
    adapter_sha256: Mapped[str | None] = mapped_column(ForeignKey("blobs.sha256"))
    signature: Mapped[str | None]  # base64 of 64 bytes, by the client's key
    key_fingerprint: Mapped[str | None]  # of that key
    aggregated_in: Mapped[int | None]  # number of the round that used it
    late_at: Mapped[datetime | None]  # when its result came too late for any round
    error: Mapped[str | None]
    started_at: Mapped[datetime | None]
    ended_at: Mapped[datetime | None]

    round: Mapped[Round] = relationship()
    client: Mapped[Client] = relationship()
