"""Signing in, users, one's own account, and the audit trail."""

import builtins
from collections.abc import Iterator
from urllib.parse import urlencode
from uuid import UUID

from pydantic import SecretStr

from backend.api_client.transport import Transport
from backend.contracts.audit import AuditEntry, AuditFilter
from backend.contracts.common import Page
from backend.contracts.oidc import SignInOffer, TicketRedemption
from backend.contracts.users import (
    NewPersonalToken,
    OpenSession,
    PasswordChange,
    PersonalToken,
    PersonalTokenCreate,
    RecoveryCodes,
    SecondFactorCode,
    SecondFactorOffer,
    Session,
    SignIn,
    User,
    UserCreate,
    UserUpdate,
)


class Sessions:
    """`/sessions`: signing in and out."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def create(self, credentials: SignIn) -> Session:
        """Exchange a name and a password for a session token."""
        return self._transport.post("/sessions", Session, credentials)

    def offer(self) -> SignInOffer:
        """Where a browser begins to sign in with the configured service, if there is one."""
        return self._transport.get("/oidc", SignInOffer)

    def redeem(self, ticket: str) -> Session:
        """The session for the ticket that a browser brought from the sign-in service."""
        return self._transport.post(
            "/oidc/session", Session, TicketRedemption(ticket=SecretStr(ticket))
        )

    def delete_current(self) -> None:
        """End the session whose token this client sends."""
        self._transport.call("DELETE", "/sessions/current")

    def list(self) -> builtins.list[OpenSession]:
        """Where one is signed in, newest first."""
        return self._transport.get("/sessions", builtins.list[OpenSession])

    def end(self, session_id: UUID) -> None:
        """End another session of one's own."""
        self._transport.call("DELETE", f"/sessions/{session_id}")


class Users:
    """`/users`: who may sign in."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def me(self) -> User:
        """The user whose token this client sends."""
        return self._transport.get("/users/me", User)

    def create(self, user: UserCreate) -> User:
        """Add a user; for administrators."""
        return self._transport.post("/users", User, user)

    def list(self) -> Iterator[User]:
        """All users, newest first; for administrators."""
        return self._transport.walk("/users", User)

    def update(self, user_id: UUID, change: UserUpdate) -> User:
        """Change role, access or second factor of a user; for administrators."""
        return self._transport.patch(f"/users/{user_id}", User, change)


class Account:
    """`/users/me`: password, personal tokens and second factor of one's own."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def change_password(self, change: PasswordChange) -> None:
        """Set a new password; other sessions and personal tokens end."""
        self._transport.call("POST", "/users/me/password", change)

    def create_token(self, token: PersonalTokenCreate) -> NewPersonalToken:
        """Make a token for a program; its secret is shown once."""
        return self._transport.post("/users/me/tokens", NewPersonalToken, token)

    def list_tokens(self) -> list[PersonalToken]:
        """Personal tokens that count, newest first."""
        return self._transport.get("/users/me/tokens", list[PersonalToken])

    def end_token(self, token_id: UUID) -> None:
        """End a personal token."""
        self._transport.call("DELETE", f"/users/me/tokens/{token_id}")

    def offer_second_factor(self) -> SecondFactorOffer:
        """A secret for an authenticator app; it counts once confirmed."""
        return self._transport.post("/users/me/second-factor", SecondFactorOffer)

    def confirm_second_factor(self, code: SecondFactorCode) -> RecoveryCodes:
        """Switch the second factor on."""
        return self._transport.post("/users/me/second-factor/confirmation", RecoveryCodes, code)

    def remove_second_factor(self, code: SecondFactorCode) -> None:
        """Switch the second factor off."""
        self._transport.call("POST", "/users/me/second-factor/removal", code)


class AuditTrail:
    """`/audit`: who changed what; for administrators."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def page(self, wanted: AuditFilter, limit: int = 100) -> Page[AuditEntry]:
        """The newest entries that fulfil all conditions."""
        query = wanted.model_dump(mode="json", exclude_none=True)
        return self._transport.get("/audit", Page[AuditEntry], query | {"limit": limit})

    def csv(self, wanted: AuditFilter) -> bytes:
        """All of them as CSV, oldest first."""
        query = urlencode(wanted.model_dump(mode="json", exclude_none=True))
        with self._transport.stream(f"/audit/export.csv?{query}") as parts:
            return b"".join(parts)
