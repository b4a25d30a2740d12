"""Which client takes part in which federation."""

from datetime import datetime
from uuid import UUID

from sqlalchemy import ForeignKey, func
from sqlalchemy.orm import Mapped, mapped_column

from backend.db.base import Base


class Membership(Base):
    """One client's place in one federation."""

    __tablename__ = "memberships"

    federation_id: Mapped[UUID] = mapped_column(ForeignKey("federations.id"), primary_key=True)
    client_id: Mapped[UUID] = mapped_column(ForeignKey("clients.id"), primary_key=True, index=True)
    joined_at: Mapped[datetime] = mapped_column(server_default=func.now())
