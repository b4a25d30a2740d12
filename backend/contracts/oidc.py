"""Signing in with the accounts of one's organisation (OpenID Connect)."""

from pydantic import ConfigDict, Field, SecretStr

from backend.contracts.common import Answer, Request


class SignInOffer(Answer):
    """Whether the platform knows a sign-in service, and where signing in with it begins."""

    url: str | None = Field(description="for the browser; empty: there is none")


class TicketRedemption(Request):
    """What the dashboard got in its address after somebody signed in."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"ticket": "fbt_..."}]})

    ticket: SecretStr = Field(max_length=200)
