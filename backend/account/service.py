"""What people change about their own accounts."""

from datetime import UTC, datetime, timedelta
from uuid import UUID

from sqlalchemy.orm import Session as DatabaseSession

from backend.audit import record_audit
from backend.auth import repository, second_factor
from backend.auth.passwords import hash_password, password_matches
from backend.auth.principals import UserPrincipal
from backend.auth.sealing import seal_of
from backend.auth.service import issue_personal_token
from backend.contracts.users import (
    NewPersonalToken,
    PasswordChange,
    PersonalToken,
    PersonalTokenCreate,
    RecoveryCodes,
    SecondFactorCode,
    SecondFactorOffer,
)
from backend.db import models
from backend.errors import ConflictError, InvalidError, NotFoundError
from backend.sessions.service import second_factor_matches
from backend.settings import Settings
from backend.users.service import forget_second_factor

MAX_TOKENS = 50


def change_password(
    session: DatabaseSession, principal: UserPrincipal, change: PasswordChange
) -> None:
    """Sets a new password and ends everything else that was opened with the old one.

    Raises:
        InvalidError: the present password is wrong.
    """
    user = session.get_one(models.User, principal.id)
    if not password_matches(change.current_password.get_secret_value(), user.password_hash):
        raise InvalidError("The present password is wrong.", code="wrong_password")
    user.password_hash = hash_password(change.new_password.get_secret_value())
    ended = repository.revoke_user_tokens(session, user.id, spare=principal.token_id)
    record_audit(session, principal, "user.change_password", user.id, tokens_ended=ended)


def create_token(
    session: DatabaseSession, principal: UserPrincipal, request: PersonalTokenCreate
) -> NewPersonalToken:
    """A personal token.

    Raises:
        ConflictError: the user has as many as allowed.
    """
    if len(list_tokens(session, principal)) >= MAX_TOKENS:
        raise ConflictError(
            f"You have {MAX_TOKENS} personal tokens. End one first.", code="too_many_tokens"
        )
    expires_at = datetime.now(UTC) + timedelta(days=request.days)
    token, secret = issue_personal_token(
        session, principal.id, request.name, request.scope, expires_at
    )
    record_audit(
        session, principal, "token.create", token.id, name=request.name, scope=request.scope
    )
    shown = PersonalToken.model_validate(token)
    return NewPersonalToken(**shown.model_dump(), token=secret)


def list_tokens(session: DatabaseSession, principal: UserPrincipal) -> list[PersonalToken]:
    """A user's personal tokens that count, newest first."""
    tokens = session.scalars(
        repository.live_tokens(principal.id)
        .where(models.Token.scope.is_not(None))
        .order_by(models.Token.id.desc())
    )
    return [PersonalToken.model_validate(token) for token in tokens]


def end_token(session: DatabaseSession, principal: UserPrincipal, token_id: UUID) -> None:
    """Ends a personal token.

    Raises:
        NotFoundError: no such token of this user counts.
    """
    if not repository.revoke_user_token(session, principal.id, token_id):
        raise NotFoundError(f"You have no token {token_id}. List them with GET /users/me/tokens.")
    record_audit(session, principal, "token.end", token_id)


def offer_second_factor(
    session: DatabaseSession, principal: UserPrincipal, settings: Settings
) -> SecondFactorOffer:
    """A secret for an authenticator app, which does not count yet.

    Raises:
        ConflictError: there is a second factor already.
    """
    user = session.get_one(models.User, principal.id)
    if user.totp_confirmed_at is not None:
        raise ConflictError(
            "This account has a second factor. Remove it first, with a code.",
            code="second_factor_exists",
        )
    secret = second_factor.new_secret()
    user.totp_secret = seal_of(settings).close(secret)
    return SecondFactorOffer(secret=secret, uri=second_factor.address_of(secret, user.username))


def confirm_second_factor(
    session: DatabaseSession,
    principal: UserPrincipal,
    confirmation: SecondFactorCode,
    settings: Settings,
) -> RecoveryCodes:
    """Makes the offered secret count, and gives recovery codes.

    Raises:
        ConflictError: none was offered, or one counts already.
        InvalidError: the code is wrong.
    """
    user = session.get_one(models.User, principal.id, with_for_update=True)
    if user.totp_secret is None or user.totp_confirmed_at is not None:
        raise ConflictError(
            "There is no second factor to confirm. Ask for one with "
            "POST /users/me/second-factor first.",
            code="no_second_factor_offered",
        )
    secret = seal_of(settings).open(user.totp_secret)
    step = second_factor.matching_step(secret, confirmation.code, None)
    if step is None:
        raise _wrong_code()
    codes, hashes = second_factor.new_recovery_codes()
    user.totp_confirmed_at, user.totp_last_step = datetime.now(UTC), step
    user.recovery_hashes = hashes
    record_audit(session, principal, "user.add_second_factor", user.id)
    return RecoveryCodes(codes=codes)


def remove_second_factor(
    session: DatabaseSession,
    principal: UserPrincipal,
    confirmation: SecondFactorCode,
    settings: Settings,
) -> None:
    """Signing in needs the password alone again.

    Raises:
        ConflictError: there is none.
        InvalidError: the code is wrong.
    """
    user = session.get_one(models.User, principal.id, with_for_update=True)
    if user.totp_confirmed_at is None:
        raise ConflictError("This account has no second factor.", code="no_second_factor")
    if not second_factor_matches(user, confirmation.code, settings):
        raise _wrong_code()
    forget_second_factor(user)
    record_audit(session, principal, "user.remove_second_factor", user.id)


def _wrong_code() -> InvalidError:
    return InvalidError(
        "The code is wrong, too old or used already. Wait for the next one, and check the clock "
        "of your device.",
        code="wrong_second_factor",
    )
