"""The audit trail, as administrators read it."""

from datetime import datetime
from typing import Any, Literal
from uuid import UUID

from pydantic import Field

from backend.contracts.common import Answer, Request

ActorKind = Literal["user", "client", "system"]


class AuditEntry(Answer):
    """One change of state: who, what, from where, and what was different before and after."""

    id: int
    created_at: datetime
    actor_kind: ActorKind
    actor_id: UUID | None
    actor_name: str
    action: str = Field(description="object and verb, such as `federation.create`")
    object_id: UUID | None
    data: dict[str, Any]
    address: str | None


class AuditFilter(Request):
    """Which entries; all conditions must hold."""

    actor_name: str | None = Field(None, max_length=100, description="exactly this name")
    actor_kind: ActorKind | None = None
    action: str | None = Field(
        None,
        max_length=100,
        pattern=r"^[a-z_]+(\.[a-z_]+)?$",
        description="such as `run.start`, or `run` for all that was done with runs",
    )
    object_id: UUID | None = None
    since: datetime | None = Field(None, description="this moment or later")
    until: datetime | None = Field(None, description="before this moment")
