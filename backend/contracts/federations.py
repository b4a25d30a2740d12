"""Who works together, and the geometry they share."""

from datetime import datetime
from uuid import UUID

from pydantic import ConfigDict, Field

from backend.contracts.clients import Client
from backend.contracts.common import Answer, Name, Request


class FederationCreate(Request):
    """A new federation with its members."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"name": "Three clinics", "global_rank": 16, "client_ids": []}]
        }
    )

    name: Name
    description: str = Field("", max_length=2000, pattern=r"^[^\x00]*$")
    global_rank: int = Field(
        16,
        ge=1,
        le=4096,
        description="R: shared matrices are R x R. At least the largest LoRA rank of a member.",
    )
    client_ids: list[UUID] = Field(
        min_length=1, max_length=1000, description="the members; 1 or more clients"
    )


class Federation(Answer):
    """A federation as listed."""

    id: UUID
    name: str
    description: str
    global_rank: int
    num_clients: int
    num_runs: int
    created_at: datetime


class FederationDetail(Federation):
    """A federation with its members."""

    clients: list[Client]
