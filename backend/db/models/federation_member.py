"""Which user works in which federation."""

from datetime import datetime
from uuid import UUID

from sqlalchemy import ForeignKey, func
from sqlalchemy.orm import Mapped, mapped_column

from backend.contracts.enums import Role
from backend.db.base import Base, enum_column


class FederationMember(Base):
    """One user's place in one federation; clients have theirs in `memberships`."""

    __tablename__ = "federation_members"

    federation_id: Mapped[UUID] = mapped_column(ForeignKey("federations.id"), primary_key=True)
    user_id: Mapped[UUID] = mapped_column(ForeignKey("users.id"), primary_key=True, index=True)
    role: Mapped[Role] = mapped_column(enum_column(Role))
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
