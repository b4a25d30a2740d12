"""Secure aggregation in a round: how far its exchanges are, and what its parties have sent."""

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import ForeignKey, func
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from backend.contracts.enums import SecureStep
from backend.db.base import Base, enum_column


class SecureSession(Base):
    """The session of a round; only a training round of a run with secure aggregation has one.

    `number` counts the sessions that the round has had: a resumed round begins another one, with
    fresh keys, unless its masked inputs were in.
    """

    __tablename__ = "secure_sessions"

    round_id: Mapped[UUID] = mapped_column(ForeignKey("rounds.id"), primary_key=True)
    number: Mapped[int] = mapped_column(default=1)
    step: Mapped[SecureStep] = mapped_column(enum_column(SecureStep), default=SecureStep.KEYS)
    threshold: Mapped[int]  # how many must tell their shares before the sum opens
    step_since: Mapped[datetime] = mapped_column(server_default=func.now())


class SecureParty(Base):
    """One client in the session of its round: public keys, and shares that the platform carries.

    A row comes with the keys and goes when the round begins another session.
    """

    __tablename__ = "secure_parties"

    client_update_id: Mapped[UUID] = mapped_column(
        ForeignKey("client_updates.id"), primary_key=True
    )
    cipher_key: Mapped[str]  # base64, as everything here that is bytes
    mask_key: Mapped[str]
    shares: Mapped[dict[str, Any] | None] = mapped_column(JSONB(none_as_null=True))  # by recipient
    revealed: Mapped[dict[str, Any] | None] = mapped_column(JSONB(none_as_null=True))
