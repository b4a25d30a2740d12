"""Who may sign in."""

from datetime import UTC, datetime
from uuid import UUID

from sqlalchemy.orm import Session as DatabaseSession

from backend.audit import record_audit
from backend.auth.lockout import forget_failures
from backend.auth.passwords import hash_password
from backend.auth.principals import Actor, SystemPrincipal, UserPrincipal
from backend.auth.repository import revoke_user_tokens
from backend.contracts.common import Page
from backend.contracts.enums import Role
from backend.contracts.users import User, UserCreate, UserUpdate
from backend.db import models
from backend.db.conflicts import unique
from backend.errors import ConflictError, NotFoundError
from backend.users import repository
from backend.web.paging import fetch_page


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
    return describe_user(user)


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
    return describe_user(repository.get(session, user_id))


def find_for_sign_in(session: DatabaseSession, username: str) -> models.User | None:
    """The user of this name, held so that a one-time code cannot be used twice at once."""
    return repository.find_by_username(session, username)


def describe_user(user: models.User) -> User:
    """What may be shown of a user."""
    shown = User.model_validate(user)
    return shown.model_copy(update={"has_second_factor": user.totp_confirmed_at is not None})


def forget_second_factor(user: models.User) -> None:
    """Takes the second factor off an account."""
    user.totp_secret = user.totp_confirmed_at = user.totp_last_step = None
    user.recovery_hashes = []


def update_user(
    session: DatabaseSession, user_id: UUID, change: UserUpdate, actor: UserPrincipal
) -> User:
    """Changes role, access or second factor of a user, and unlocks the name.

    Raises:
        NotFoundError: no such user.
        ConflictError: administrators cannot take their own access away, so that one always stays.
    """
    user = repository.find(session, user_id)
    if user is None:
        raise NotFoundError(f"There is no user {user_id}. List them with GET /users.")
    is_weaker = change.role not in {None, user.role} or change.is_disabled
    if user.id == actor.id and is_weaker:
        raise ConflictError(
            "You cannot take your own access away. Ask another administrator.",
            code="own_access",
        )
    before = {"role": user.role, "is_disabled": user.disabled_at is not None}
    if change.role is not None:
        user.role = change.role
    if change.is_disabled is not None:
        user.disabled_at = (user.disabled_at or datetime.now(UTC)) if change.is_disabled else None
    if change.reset_second_factor:
        forget_second_factor(user)
    if change.is_disabled:
        revoke_user_tokens(session, user.id)
    forget_failures(session, user.username)
    after = {"role": user.role, "is_disabled": user.disabled_at is not None}
    record_audit(
        session,
        actor,
        "user.update",
        user.id,
        before=before,
        after=after,
        reset_second_factor=change.reset_second_factor,
    )
    session.flush()
    return describe_user(user)


def list_users(session: DatabaseSession, cursor: UUID | None, limit: int) -> Page[User]:
    """All users, newest first."""
    return fetch_page(
        session, repository.list_query(), models.User.id, cursor, limit, describe_user
    )
