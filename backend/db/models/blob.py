"""Stored bytes."""

from datetime import datetime

from sqlalchemy import func
from sqlalchemy.orm import Mapped, mapped_column

from backend.db.base import Base


class Blob(Base):
    """Bytes in the blob store, named by their SHA-256; the row comes after the bytes."""

    __tablename__ = "blobs"

    sha256: Mapped[str] = mapped_column(primary_key=True)
    size_bytes: Mapped[int]
    media_type: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    last_stored_at: Mapped[datetime] = mapped_column(server_default=func.now())
