"""How much of the traffic that is allowed to a client or a federation is used up."""

from datetime import datetime
from enum import StrEnum

from pydantic import Field

from backend.contracts.common import Answer

QUOTA_EXCEEDED = "quota_exceeded"
"""Code of the 429 that says: so much for this hour or day; `Retry-After` says how long to wait."""


class QuotaName(StrEnum):
    """What is counted."""

    REQUESTS_PER_HOUR = "requests_per_hour"
    BYTES_PER_DAY = "bytes_per_day"  # bodies of requests and of answers


class QuotaUse(Answer):
    """One quota, and how much of it is used in the window that runs now."""

    name: QuotaName
    used: int
    allowed: int | None = Field(description="empty: as much as one likes")
    resets_at: datetime | None = Field(description="when the window ends; empty: none has begun")
