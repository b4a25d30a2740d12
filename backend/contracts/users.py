"""Signing in, and who is signed in."""

from datetime import datetime
from uuid import UUID

from pydantic import ConfigDict, Field, SecretStr

from backend.contracts.common import Answer, Name, Request
from backend.contracts.enums import Role


class SignIn(Request):
    """Credentials of a user."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"username": "admin", "password": "correct horse"}]}
    )

    username: Name
    password: SecretStr = Field(min_length=1, max_length=1000)


class User(Answer):
    """A person who may sign in."""

    id: UUID
    username: str
    role: Role
    created_at: datetime


class Session(Answer):
    """A fresh session token, shown once; send it as `Authorization: Bearer ...`."""

    token: str
    expires_at: datetime
    user: User


class UserCreate(Request):
    """A new user; made by an administrator."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"username": "olga", "password": "correct horse battery", "role": "operator"}
            ]
        }
    )

    username: Name
    password: SecretStr = Field(min_length=12, max_length=1000, description="12 characters or more")
    role: Role
