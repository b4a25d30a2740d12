"""Keys with which clients register."""

from datetime import datetime
from uuid import UUID

from sqlalchemy import CheckConstraint, ForeignKey, func
from sqlalchemy.orm import Mapped, mapped_column

from backend.db.base import Base
from backend.db.ids import new_id


class EnrolmentKey(Base):
    """An enrolment key, kept as SHA-256 only, with limited uses and an end."""

    __tablename__ = "enrolment_keys"
    __table_args__ = (CheckConstraint("num_uses <= max_uses", name="uses_within_limit"),)

    id: Mapped[UUID] = mapped_column(primary_key=True, default=new_id)
    secret_hash: Mapped[str] = mapped_column(unique=True)
    label: Mapped[str]
    # The federation that clients with this key join; none: they join the platform only.
    federation_id: Mapped[UUID | None] = mapped_column(ForeignKey("federations.id"))
    requires_approval: Mapped[bool] = mapped_column(default=False, server_default="false")
    max_uses: Mapped[int]
    num_uses: Mapped[int] = mapped_column(default=0)
    expires_at: Mapped[datetime]
    revoked_at: Mapped[datetime | None]
    created_by: Mapped[UUID] = mapped_column(ForeignKey("users.id"))
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
