"""Signing in and out."""

import logging
from datetime import UTC, datetime, timedelta
from uuid import UUID

from sqlalchemy.orm import Session as DatabaseSession

from backend.audit import record_audit
from backend.auth import lockout, repository, second_factor
from backend.auth.passwords import password_matches
from backend.auth.principals import UserPrincipal
from backend.auth.sealing import seal_of
from backend.auth.secrets import hash_secret
from backend.auth.service import issue_session, revoke_session
from backend.contracts.users import SECOND_FACTOR_REQUIRED, OpenSession, Session, SignIn
from backend.db import models
from backend.errors import LockedError, NotFoundError, UnauthenticatedError
from backend.settings import Settings
from backend.users.service import describe_user, find_for_sign_in

logger = logging.getLogger(__name__)

_DIGITS_OF_A_CODE = 6


def sign_in(
    session: DatabaseSession, credentials: SignIn, settings: Settings, address: str | None
) -> Session:
    """A fresh session of a user.

    Raises:
        UnauthenticatedError: unknown user or wrong password, nobody can tell which; or a missing
            or wrong second factor.
        LockedError: too many failures in a row under this name.
    """
    _require_unlocked(session, credentials.username)
    user = find_for_sign_in(session, credentials.username)
    password_hash = user.password_hash if user else None
    matches = password_matches(credentials.password.get_secret_value(), password_hash)
    if user is None or not matches:
        _fail(session, credentials.username, address)
        raise UnauthenticatedError(
            "The user name or the password is wrong. Check both, or ask an administrator.",
            code="wrong_credentials",
        )
    if user.disabled_at is not None:
        raise UnauthenticatedError(
            f"User {user.username} is disabled. Ask an administrator.", code="user_disabled"
        )
    if user.totp_confirmed_at is not None:
        if credentials.code is None:
            raise UnauthenticatedError(
                "This account has a second factor: send the code that your authenticator app "
                "shows, or a recovery code.",
                code=SECOND_FACTOR_REQUIRED,
            )
        if not second_factor_matches(user, credentials.code, settings):
            _fail(session, credentials.username, address)
            raise UnauthenticatedError(
                "The code of the second factor is wrong, too old or used already. Wait for the "
                "next one, and check the clock of your device.",
                code="wrong_second_factor",
            )
    lockout.forget_failures(session, credentials.username)
    return open_session(session, user, settings.session_hours, address)


def open_session(
    session: DatabaseSession, user: models.User, session_hours: float, address: str | None
) -> Session:
    """A fresh session of a user who proved to be it."""
    expires_at = datetime.now(UTC) + timedelta(hours=session_hours)
    token_id, token = issue_session(session, user, expires_at, address)
    who = UserPrincipal(user.id, user.username, user.role, token_id, address)
    record_audit(session, who, "session.create", token_id)
    return Session(token=token, expires_at=expires_at, user=describe_user(user))


def second_factor_matches(user: models.User, code: str, settings: Settings) -> bool:
    """True for a code of the user's app or an unused recovery code; either is then used up."""
    if len(code) == _DIGITS_OF_A_CODE and user.totp_secret is not None:
        secret = seal_of(settings).open(user.totp_secret)
        step = second_factor.matching_step(secret, code, user.totp_last_step)
        if step is None:
            return False
        user.totp_last_step = step
        return True
    hashed = hash_secret(code.lower())
    if hashed not in user.recovery_hashes:
        return False
    user.recovery_hashes = [kept for kept in user.recovery_hashes if kept != hashed]
    return True


def sign_out(session: DatabaseSession, principal: UserPrincipal) -> None:
    """Ends the session that the user sent."""
    revoke_session(session, principal.token_id)


def list_sessions(session: DatabaseSession, principal: UserPrincipal) -> list[OpenSession]:
    """A user's sessions that count, newest first."""
    tokens = session.scalars(
        repository.live_tokens(principal.id)
        .where(models.Token.scope.is_(None))
        .order_by(models.Token.id.desc())
    )
    return [
        OpenSession(
            id=token.id,
            created_at=token.created_at,
            expires_at=token.expires_at,
            address=token.address,
            is_current=token.id == principal.token_id,
        )
        for token in tokens
        if token.expires_at is not None
    ]


def end_session(session: DatabaseSession, principal: UserPrincipal, session_id: UUID) -> None:
    """Ends one of a user's own sessions.

    Raises:
        NotFoundError: no such session of this user counts.
    """
    if not repository.revoke_user_token(session, principal.id, session_id):
        raise NotFoundError(f"You have no session {session_id}. List them with GET /sessions.")
    record_audit(session, principal, "session.end", session_id)


def _require_unlocked(session: DatabaseSession, username: str) -> None:
    until = lockout.locked_until(session, username)
    if until is None:
        return
    seconds = max(1, int((until - datetime.now(UTC)).total_seconds()))
    raise LockedError(
        f"Too many failed sign-ins as {username!r}. Try again in {-(-seconds // 60)} minutes, or "
        "ask an administrator to unlock the name.",
        code="sign_in_locked",
        retry_after_seconds=seconds,
    )


def _fail(session: DatabaseSession, username: str, address: str | None) -> None:
    """Counts a failure; committed, because the refusal that follows rolls the request back."""
    is_locked = lockout.record_failure(session, username)
    session.commit()
    logger.warning("sign-in refused", extra={"address": address, "locked": is_locked})
