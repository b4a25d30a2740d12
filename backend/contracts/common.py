"""Pieces that many requests and answers share."""

from typing import Annotated, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

Item = TypeVar("Item")

DIRECT_HEADER = "FedBraid-Direct"
"""With the value `no` a caller asks for bytes from the API, not from the blob store."""

Name = Annotated[
    str,
    StringConstraints(strip_whitespace=True, min_length=1, max_length=100, pattern=r"^[^\x00]*$"),
]
"""A display name: 1 to 100 characters."""


class Request(BaseModel):
    """Base of what comes in: unknown fields are refused, so that a typo is not ignored."""

    model_config = ConfigDict(extra="forbid")


class Answer(BaseModel):
    """Base of what goes out; built from database rows by attribute."""

    model_config = ConfigDict(from_attributes=True)


class Page(BaseModel, Generic[Item]):
    """One page of a list, newest first."""

    items: list[Item]
    next_cursor: str | None = Field(None, description="pass as `cursor` for the next page")


class FieldError(BaseModel):
    """One thing that is wrong with a request."""

    field: str = Field(description="path of the field, such as `training.learning_rate`")
    value: object | None = None
    message: str


class Problem(BaseModel):
    """RFC 9457 problem details; `code` is stable, `detail` is for people."""

    type: str = "about:blank"
    title: str
    status: int
    code: str
    detail: str
    errors: list[FieldError] = []
