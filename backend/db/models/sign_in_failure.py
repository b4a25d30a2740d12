"""Failed sign-ins in a row."""

from datetime import datetime

from sqlalchemy import func
from sqlalchemy.orm import Mapped, mapped_column

from backend.db.base import Base


class SignInFailure(Base):
    """How often somebody failed to sign in under a name in a row; no such user need exist."""

    __tablename__ = "sign_in_failures"

    username: Mapped[str] = mapped_column(primary_key=True)
    num_failures: Mapped[int]
    last_at: Mapped[datetime] = mapped_column(server_default=func.now())
    locked_until: Mapped[datetime | None]
