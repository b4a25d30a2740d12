"""People who may sign in."""

from datetime import datetime
from uuid import UUID

from sqlalchemy import ARRAY, String, func
from sqlalchemy.orm import Mapped, mapped_column

from backend.contracts.enums import Role
from backend.db.base import Base, enum_column
from backend.db.ids import new_id


class User(Base):
    """A user; the password is kept as an argon2id hash only, the second factor sealed.

    A user of a sign-in service (`oidc_subject`) may have no password.
    """

    __tablename__ = "users"

    id: Mapped[UUID] = mapped_column(primary_key=True, default=new_id)
    username: Mapped[str] = mapped_column(unique=True)
    password_hash: Mapped[str | None]
    role: Mapped[Role] = mapped_column(enum_column(Role))
    disabled_at: Mapped[datetime | None]
    oidc_subject: Mapped[str | None] = mapped_column(unique=True)  # issuer and subject
    totp_secret: Mapped[str | None]  # sealed; counts once confirmed
    totp_confirmed_at: Mapped[datetime | None]
    totp_last_step: Mapped[int | None]  # a code is taken once
    recovery_hashes: Mapped[list[str]] = mapped_column(
        ARRAY(String), default=list, server_default="{}"
    )
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
