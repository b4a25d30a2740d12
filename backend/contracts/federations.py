"""Who works together, and the geometry they share."""

from datetime import datetime
from enum import StrEnum
from typing import Literal
from uuid import UUID

from pydantic import ConfigDict, Field

from backend.contracts.clients import Client
from backend.contracts.common import Answer, Name, Request
from backend.contracts.enums import Role


class Visibility(StrEnum):
    """Who sees a federation and what belongs to it; administrators always do."""

    PLATFORM = "platform"  # every user, with the platform's role
    MEMBERS = "members"  # its members, with the weaker of both roles


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
    visibility: Visibility = Field(
        Visibility.MEMBERS,
        description="`members`: only users that are members see it, you become one; `platform`: "
        "every user does",
    )
    require_signatures: bool = Field(
        False,
        description="updates of remote clients count only with a signature of their own key",
    )


class FederationUpdate(Request):
    """What is changed about a federation."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"visibility": "members"}]})

    visibility: Visibility | None = Field(None, description="empty: as it is")
    require_signatures: bool | None = Field(None, description="empty: as it is")


class FederationMemberAdd(Request):
    """A user who shall work in a federation; whoever does so already gets the new role."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"username": "olga", "role": "viewer"}]}
    )

    username: Name
    role: Literal[Role.VIEWER, Role.OPERATOR] = Field(
        Role.VIEWER, description="never more than the user's role on the platform"
    )


class FederationMember(Answer):
    """A user's place in a federation."""

    user_id: UUID
    username: str
    role: Role
    created_at: datetime


class Federation(Answer):
    """A federation as listed."""

    id: UUID
    name: str
    description: str
    global_rank: int
    visibility: Visibility = Visibility.PLATFORM
    require_signatures: bool = False
    num_clients: int
    num_runs: int
    created_at: datetime


class FederationDetail(Federation):
    """A federation with its members."""

    clients: list[Client]
