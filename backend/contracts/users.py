"""Signing in, who is signed in, and what belongs to an account."""

from datetime import datetime
from enum import StrEnum
from typing import Annotated
from uuid import UUID

from pydantic import ConfigDict, Field, SecretStr, StringConstraints

from backend.contracts.common import Answer, Name, Request
from backend.contracts.enums import Role

SECOND_FACTOR_REQUIRED = "second_factor_required"
"""Code of the 401 that says: the password is right, send the second factor's code as well."""


class TokenScope(StrEnum):
    """The most that a personal token may do, whatever its owner may; each includes the former."""

    READ = "read"
    OPERATE = "operate"
    ADMINISTER = "administer"


Password = Annotated[
    SecretStr, Field(min_length=12, max_length=1000, description="12 characters or more")
]

Code = Annotated[
    str,
    StringConstraints(
        strip_whitespace=True, min_length=6, max_length=20, pattern=r"^[0-9A-Za-z-]*$"
    ),
]
"""Six digits of an authenticator app, or a recovery code."""


class SignIn(Request):
    """Credentials of a user."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"username": "admin", "password": "correct horse"}]}
    )

    username: Name
    password: SecretStr = Field(min_length=1, max_length=1000)
    code: Code | None = Field(
        None, description="of the second factor, where the account has one; or a recovery code"
    )


class User(Answer):
    """A person who may sign in."""

    id: UUID
    username: str
    role: Role
    created_at: datetime
    disabled_at: datetime | None = None
    has_second_factor: bool = False


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
    password: Password
    role: Role


class UserUpdate(Request):
    """What an administrator changes about a user; what is left out stays."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"role": "viewer"}]})

    role: Role | None = None
    is_disabled: bool | None = Field(None, description="a disabled user cannot sign in")
    reset_second_factor: bool = Field(False, description="for somebody who lost the device")


class PasswordChange(Request):
    """A new password of one's own; all other sessions end."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"current_password": "correct horse", "new_password": "battery staple clip"}
            ]
        }
    )

    current_password: SecretStr = Field(min_length=1, max_length=1000)
    new_password: Password


class OpenSession(Answer):
    """A session that counts, without its secret."""

    id: UUID
    created_at: datetime
    expires_at: datetime
    address: str | None
    is_current: bool


class PersonalTokenCreate(Request):
    """A token for a program that acts in one's name."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"name": "nightly", "scope": "read", "days": 90}]}
    )

    name: Name
    scope: TokenScope = TokenScope.READ
    days: int = Field(90, ge=1, le=366, description="until it expires")


class PersonalToken(Answer):
    """A personal token without its secret."""

    id: UUID
    name: str
    scope: TokenScope
    created_at: datetime
    expires_at: datetime
    last_used_at: datetime | None


class NewPersonalToken(PersonalToken):
    """A fresh personal token; its secret is shown once."""

    token: str


class SecondFactorOffer(Answer):
    """What an authenticator app needs; counts only once a code confirms it."""

    secret: str = Field(description="to type in, base32")
    uri: str = Field(description="the same as an otpauth:// address, for a QR code")


class SecondFactorCode(Request):
    """A code that the authenticator app shows now."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"code": "123456"}]})

    code: Code


class RecoveryCodes(Answer):
    """Codes that each work once instead of the app; shown once."""

    codes: list[str]
