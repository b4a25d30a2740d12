"""Signing in with a sign-in service: authorization code with PKCE, state and nonce."""

import json
import secrets
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from urllib.parse import urlencode

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session as DatabaseSession

from backend.audit import record_audit
from backend.auth.principals import SystemPrincipal
from backend.auth.sealing import SealError, seal_of
from backend.auth.secrets import SecretKind, hash_secret, new_secret
from backend.contracts.users import Session
from backend.db import models
from backend.db.conflicts import unique
from backend.errors import ForbiddenError, NotFoundError, UnauthenticatedError
from backend.oidc.provider import Claims, Provider
from backend.sessions.service import open_session
from backend.settings import Settings

ATTEMPT_SECONDS = 600
TICKET_SECONDS = 60


@dataclass(frozen=True)
class Attempt:
    """What the browser keeps, sealed, while it is at the sign-in service."""

    state: str
    nonce: str
    verifier: str
    until: float


def provider_of(settings: Settings) -> Provider:
    """The configured sign-in service.

    Raises:
        NotFoundError: none is configured.
    """
    if not (settings.oidc_issuer and settings.oidc_client_id and settings.oidc_redirect_url):
        raise NotFoundError(
            "This platform has no sign-in service: sign in with POST /api/v1/sessions.",
            code="no_sign_in_service",
        )
    secret = settings.oidc_client_secret
    return Provider(
        settings.oidc_issuer,
        settings.oidc_client_id,
        secret.get_secret_value() if secret else "",
        settings.oidc_redirect_url,
    )


def begin(settings: Settings) -> tuple[str, str]:
    """Where the browser goes, and what it keeps until it comes back."""
    attempt = Attempt(
        state=secrets.token_urlsafe(32),
        nonce=secrets.token_urlsafe(32),
        verifier=secrets.token_urlsafe(64),
        until=time.time() + ATTEMPT_SECONDS,
    )
    url = provider_of(settings).authorization_url(attempt.state, attempt.nonce, attempt.verifier)
    return url, seal_of(settings).close(json.dumps(asdict(attempt)))


def complete(
    session: DatabaseSession, settings: Settings, sealed: str | None, state: str, code: str
) -> str:
    """Where the browser goes after the sign-in service sent it back: the dashboard, with a ticket.

    Raises:
        UnauthenticatedError: another browser began this, it took too long, or the service does
            not confirm it.
        ForbiddenError: the person may not use this platform.
        SignInServiceError: the service does not answer.
    """
    provider = provider_of(settings)
    attempt = _attempt(settings, sealed, state)
    claims = provider.identify(code, attempt.verifier, attempt.nonce)
    user = _user(session, settings, claims)
    ticket = new_secret(SecretKind.TICKET)
    until = datetime.now(UTC) + timedelta(seconds=TICKET_SECONDS)
    session.add(
        models.SignInTicket(secret_hash=hash_secret(ticket), user_id=user.id, expires_at=until)
    )
    session.flush()
    return f"{settings.oidc_dashboard_url}?{urlencode({'ticket': ticket})}"


def redeem(
    session: DatabaseSession, settings: Settings, ticket: str, address: str | None
) -> Session:
    """The session of whoever got a ticket; works once.

    Raises:
        UnauthenticatedError: unknown, used or expired, or the user is disabled.
    """
    session.execute(delete(models.SignInTicket).where(models.SignInTicket.expires_at < func.now()))
    user_id = session.scalar(
        delete(models.SignInTicket)
        .where(models.SignInTicket.secret_hash == hash_secret(ticket))
        .returning(models.SignInTicket.user_id)
    )
    if user_id is None:
        raise UnauthenticatedError(
            "This sign-in ticket was used already or has expired. Sign in again.",
            code="ticket_refused",
        )
    user = session.get_one(models.User, user_id)
    _require_enabled(user)
    return open_session(session, user, settings.session_hours, address)


def _attempt(settings: Settings, sealed: str | None, state: str) -> Attempt:
    refusal = UnauthenticatedError(
        "This sign-in was not begun in this browser, or it took too long. Begin again.",
        code="sign_in_not_begun",
    )
    if sealed is None:
        raise refusal
    try:
        attempt = Attempt(**json.loads(seal_of(settings).open(sealed)))
    except (SealError, ValueError, TypeError) as error:
        raise refusal from error
    is_same = secrets.compare_digest(attempt.state.encode(), state.encode())
    if not is_same or attempt.until < time.time():
        raise refusal
    return attempt


def _user(session: DatabaseSession, settings: Settings, claims: Claims) -> models.User:
    """The user of a person: known by the service's subject, else by the verified address."""
    subject = f"{settings.oidc_issuer} {claims.sub}"
    known = session.scalar(select(models.User).where(models.User.oidc_subject == subject))
    address = claims.email.lower() if claims.email and claims.email_verified else None
    _require_allowed(settings, address)
    if known is not None:
        _require_enabled(known)
        return known
    if address is None:
        raise ForbiddenError(
            "The sign-in service gives no verified e-mail address of yours, by which this "
            "platform would know you. Ask an administrator.",
            code="no_verified_address",
        )
    made_before = session.scalar(
        select(models.User)
        .where(models.User.username == address, models.User.oidc_subject.is_(None))
        .with_for_update()
    )
    if made_before is not None:
        _require_enabled(made_before)
        made_before.oidc_subject = subject
        record_audit(session, SystemPrincipal(), "user.link", made_before.id)
        return made_before
    return _new_user(session, settings, address, subject)


def _new_user(
    session: DatabaseSession, settings: Settings, address: str, subject: str
) -> models.User:
    if settings.oidc_default_role is None:
        raise ForbiddenError(
            f"There is no user {address!r} on this platform. Ask an administrator to add one "
            "with this name.",
            code="no_account",
        )
    user = models.User(username=address, role=settings.oidc_default_role, oidc_subject=subject)
    taken = f"There is a user {address!r} who signs in otherwise. Ask an administrator."
    with unique(session, taken, "username_taken"):
        session.add(user)
    record_audit(
        session, SystemPrincipal(), "user.create", user.id, username=address, role=user.role
    )
    return user


def _require_allowed(settings: Settings, address: str | None) -> None:
    domains = settings.oidc_allowed_domains
    if domains and (address is None or address.rpartition("@")[2] not in domains):
        raise ForbiddenError(
            "Only verified addresses of these domains may sign in: " + ", ".join(domains) + ".",
            code="domain_not_allowed",
        )


def _require_enabled(user: models.User) -> None:
    if user.disabled_at is not None:
        raise UnauthenticatedError(
            f"User {user.username} is disabled. Ask an administrator.", code="user_disabled"
        )
