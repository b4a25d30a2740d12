"""Signing in and out, and who may."""

import logging
from datetime import UTC, datetime, timedelta
from uuid import UUID

from sqlalchemy.orm import Session as DatabaseSession

from backend.audit import record_audit
from backend.auth.passwords import hash_password, password_matches
from backend.auth.principals import Actor, SystemPrincipal, UserPrincipal
from backend.auth.service import issue_session, revoke_session
from backend.contracts.common import Page
from backend.contracts.enums import Role
from backend.contracts.users import Session, SignIn, User, UserCreate
from backend.db import models
from backend.db.conflicts import unique
from backend.errors import UnauthenticatedError
from backend.users import repository
from backend.web.paging import fetch_page

logger = logging.getLogger(__name__)


def sign_in(
    session: DatabaseSession, credentials: SignIn, session_hours: float, address: str | None
) -> Session:
    """A fresh session of a user.

    Raises:
        UnauthenticatedError: unknown user or wrong password; nobody can tell which.
    """
    user = repository.find_by_username(session, credentials.username)
    password_hash = user.password_hash if user else None
    matches = password_matches(credentials.password.get_secret_value(), password_hash)
    if user is None or not matches:
        logger.warning("sign-in refused", extra={"address": address})
        raise UnauthenticatedError(
            "The user name or the password is wrong. Check both, or ask an administrator.",
            code="wrong_credentials",
        )
    expires_at = datetime.now(UTC) + timedelta(hours=session_hours)
    token = issue_session(session, user, expires_at)
    session.flush()
    return Session(token=token, expires_at=expires_at, user=User.model_validate(user))


def sign_out(session: DatabaseSession, principal: UserPrincipal) -> None:
    """Ends the session that the user sent."""
    revoke_session(session, principal.token_id)


def create_user(session: DatabaseSession, request: UserCreate, actor: Actor) -> User:
    """A new user.

    Raises:
        ConflictError: the name is taken.
    """
    user = models.User(
        username=request.username,
        password_hash=hash_password(request.password.get_secret_value()),
        role=request.role,
    )
    with unique(
        session,
        f"There is a user {request.username!r} already. Choose another name.",
        "username_taken",
    ):
        session.add(user)
    record_audit(session, actor, "user.create", user.id, username=user.username, role=user.role)
    return User.model_validate(user)


def ensure_administrator(session: DatabaseSession, username: str, password: str) -> bool:
    """Creates the first administrator of an empty platform; says whether it did.

    Args:
        session: committed by the caller.
        username: of the new user.
        password: 12 characters or more.
    """
    if repository.count(session):
        return False
    request = UserCreate.model_validate(
        {"username": username, "password": password, "role": Role.ADMINISTRATOR}
    )
    create_user(session, request, SystemPrincipal())
    return True


def get_user(session: DatabaseSession, user_id: UUID) -> User:
    """A user who exists."""
    return User.model_validate(repository.get(session, user_id))


def list_users(session: DatabaseSession, cursor: UUID | None, limit: int) -> Page[User]:
    """All users, newest first."""
    return fetch_page(
        session, repository.list_query(), models.User.id, cursor, limit, User.model_validate
    )
