"""A participant stays out of a run: who, of which run, and why."""

from datetime import datetime
from typing import Annotated
from uuid import UUID

from pydantic import ConfigDict, StringConstraints

from backend.contracts.common import Answer, Request

Reason = Annotated[
    str,
    StringConstraints(strip_whitespace=True, min_length=1, max_length=500, pattern=r"^[^\x00]*$"),
]
"""A sentence for people: 1 to 500 characters."""


class RefusalCreate(Request):
    """A client does not take part in a run; this holds for that run only."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "run_id": "019a0000-0000-7000-8000-000000000000",
                    "reason": "The ethics board has not yet agreed.",
                }
            ]
        }
    )

    run_id: UUID
    reason: Reason


class Refusal(Answer):
    """A client that does not take part in a run."""

    id: UUID
    run_id: UUID
    client_id: UUID
    client_name: str
    reason: str
    refused_by: str
    created_at: datetime
