"""Accounts and the audit trail of the REST API in memory."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any
from uuid import UUID, uuid4

from fastapi import FastAPI, Query, Response

from backend.contracts.audit import AuditEntry, AuditFilter
from backend.contracts.common import Page
from backend.contracts.federations import (
    FederationDetail,
    FederationMember,
    FederationMemberAdd,
    FederationUpdate,
)
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
    User,
    UserUpdate,
)

if TYPE_CHECKING:
    from tests.dashboard.fake_platform import FakePlatform

CODE = "123456"
SECRET = "JBSWY3DPEHPK3PXP"
RECOVERY = ["aaaa1111-bbbb2222", "cccc3333-dddd4444"]
PERSONAL = "fbp_fresh"
TICKET = "fbt_good"


class Accounts:
    """What belongs to the only account, and what was asked of the audit trail."""

    def __init__(self) -> None:
        self.tokens: list[PersonalToken] = []
        self.passwords: list[str] = []
        self.entries: list[AuditEntry] = []
        self.filters: list[AuditFilter] = []
        self.sign_in_url: str | None = None
        self.members: dict[UUID, list[FederationMember]] = {}
        start = datetime.now(UTC)
        self.sessions = [
            OpenSession(
                id=uuid4(),
                created_at=start,
                expires_at=start + timedelta(hours=1),
                address=address,
                is_current=address == "192.0.2.1",
            )
            for address in ("192.0.2.1", "192.0.2.2")
        ]


class _Listing(AuditFilter):
    limit: int = 100


def add_account_routes(
    app: FastAPI,
    platform: FakePlatform,
    guards: list[Any],
    route: Callable[..., Any],
    refusal: type[Exception],
) -> None:
    accounts = platform.accounts

    @route(app, "POST", "/users/me/password", guards, 204)
    def change_password(body: PasswordChange) -> Response:
        if body.current_password.get_secret_value() != "correct horse battery":
            raise refusal(422, "wrong_password", "The present password is wrong.")
        accounts.passwords.append(body.new_password.get_secret_value())
        return Response(status_code=204)

    @route(app, "GET", "/users/me/tokens", guards)
    def tokens() -> list[PersonalToken]:
        return accounts.tokens

    @route(app, "POST", "/users/me/tokens", guards, 201)
    def create_token(body: PersonalTokenCreate) -> NewPersonalToken:
        now = datetime.now(UTC)
        token = PersonalToken(
            id=uuid4(), name=body.name, scope=body.scope, created_at=now,
            expires_at=now + timedelta(days=body.days), last_used_at=None,
        )  # fmt: skip
        accounts.tokens.append(token)
        return NewPersonalToken(**token.model_dump(), token=PERSONAL)

    @route(app, "DELETE", "/users/me/tokens/{token_id}", guards, 204)
    def end_token(token_id: UUID) -> Response:
        accounts.tokens = [token for token in accounts.tokens if token.id != token_id]
        return Response(status_code=204)

    _sessions_and_users(app, platform, guards, route)
    _second_factor(app, platform, guards, route, refusal)
    _members(app, platform, guards, route, refusal)
    _sign_in_service(app, platform, route, refusal)


def _sessions_and_users(
    app: FastAPI, platform: FakePlatform, guards: list[Any], route: Callable[..., Any]
) -> None:
    accounts = platform.accounts

    @route(app, "GET", "/sessions", guards)
    def sessions() -> list[OpenSession]:
        return accounts.sessions

    @route(app, "DELETE", "/sessions/{session_id}", guards, 204)
    def end_session(session_id: UUID) -> Response:
        accounts.sessions = [item for item in accounts.sessions if item.id != session_id]
        return Response(status_code=204)

    @route(app, "PATCH", "/users/{user_id}", guards)
    def update_user(user_id: UUID, body: UserUpdate) -> User:
        user = next(user for user in platform.users if user.id == user_id)
        if body.role is not None:
            user.role = body.role
        if body.is_disabled is not None:
            user.disabled_at = datetime.now(UTC) if body.is_disabled else None
        if body.reset_second_factor:
            user.has_second_factor = False
        return user

    @route(app, "GET", "/audit", guards)
    def audit(wanted: Annotated[_Listing, Query()]) -> Page[AuditEntry]:
        accounts.filters.append(wanted)
        return Page(items=accounts.entries)


def _second_factor(
    app: FastAPI,
    platform: FakePlatform,
    guards: list[Any],
    route: Callable[..., Any],
    refusal: type[Exception],
) -> None:
    @route(app, "POST", "/users/me/second-factor", guards, 201)
    def offer() -> SecondFactorOffer:
        return SecondFactorOffer(
            secret=SECRET, uri=f"otpauth://totp/FedBraid:admin?secret={SECRET}"
        )

    @route(app, "POST", "/users/me/second-factor/confirmation", guards)
    def confirm(body: SecondFactorCode) -> RecoveryCodes:
        if body.code != CODE:
            raise refusal(422, "wrong_second_factor", "The code is wrong.")
        platform.user.has_second_factor = True
        return RecoveryCodes(codes=RECOVERY)

    @route(app, "POST", "/users/me/second-factor/removal", guards, 204)
    def remove(body: SecondFactorCode) -> Response:
        if body.code != CODE:
            raise refusal(422, "wrong_second_factor", "The code is wrong.")
        platform.user.has_second_factor = False
        return Response(status_code=204)


def _members(
    app: FastAPI,
    platform: FakePlatform,
    guards: list[Any],
    route: Callable[..., Any],
    refusal: type[Exception],
) -> None:
    members = platform.accounts.members

    @route(app, "PATCH", "/federations/{federation_id}", guards)
    def update(federation_id: UUID, body: FederationUpdate) -> FederationDetail:
        federation = next(item for item in platform.federations if item.id == federation_id)
        federation.visibility = body.visibility
        return federation

    @route(app, "GET", "/federations/{federation_id}/members", guards)
    def listed(federation_id: UUID) -> list[FederationMember]:
        return members.get(federation_id, [])

    @route(app, "POST", "/federations/{federation_id}/members", guards, 201)
    def add(federation_id: UUID, body: FederationMemberAdd) -> FederationMember:
        if body.username == "nobody":
            raise refusal(422, "unknown_user", "There is no user 'nobody'.")
        member = FederationMember(
            user_id=uuid4(), username=body.username, role=body.role, created_at=datetime.now(UTC)
        )
        members.setdefault(federation_id, []).append(member)
        return member

    @route(app, "DELETE", "/federations/{federation_id}/members/{user_id}", guards, 204)
    def remove(federation_id: UUID, user_id: UUID) -> Response:
        members[federation_id] = [m for m in members[federation_id] if m.user_id != user_id]
        return Response(status_code=204)


def _sign_in_service(
    app: FastAPI, platform: FakePlatform, route: Callable[..., Any], refusal: type[Exception]
) -> None:
    @route(app, "GET", "/oidc", [])
    def offer() -> SignInOffer:
        return SignInOffer(url=platform.accounts.sign_in_url)

    @route(app, "POST", "/oidc/session", [], 201)
    def redeem(body: TicketRedemption) -> Session:
        if body.ticket.get_secret_value() != TICKET:
            raise refusal(401, "ticket_refused", "This sign-in ticket has expired.")
        expires_at = datetime.now(UTC) + timedelta(hours=1)
        return Session(token="fbs_test", expires_at=expires_at, user=platform.user)
