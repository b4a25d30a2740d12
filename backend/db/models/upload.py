"""Uploads that are on their way, piece by piece."""

from datetime import datetime
from uuid import UUID

from sqlalchemy import ForeignKey, UniqueConstraint, func
from sqlalchemy.orm import Mapped, mapped_column

from backend.db.base import Base
from backend.db.ids import new_id


class Upload(Base):
    """The shared matrices of one client update on their way, known by the hash of the whole.

    It belongs to the update and not to an attempt: another attempt that sends the same bytes goes
    on where the last one was.
    """

    __tablename__ = "uploads"
    __table_args__ = (UniqueConstraint("client_update_id", "sha256"),)

    id: Mapped[UUID] = mapped_column(primary_key=True, default=new_id)
    client_update_id: Mapped[UUID] = mapped_column(ForeignKey("client_updates.id"))
    sha256: Mapped[str]  # no foreign key: the blob comes with the last piece
    size_bytes: Mapped[int]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class UploadPiece(Base):
    """Bytes of an upload from `start` on, a blob of their own until the whole is there."""

    __tablename__ = "upload_pieces"

    upload_id: Mapped[UUID] = mapped_column(
        ForeignKey("uploads.id", ondelete="CASCADE"), primary_key=True
    )
    start: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    size_bytes: Mapped[int]
    sha256: Mapped[str] = mapped_column(ForeignKey("blobs.sha256"))
