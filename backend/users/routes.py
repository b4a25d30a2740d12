"""`/users`: who may sign in; for administrators."""

from uuid import UUID

from fastapi import APIRouter, status

from backend.auth.dependencies import Administrator
from backend.contracts.common import Page
from backend.contracts.users import User, UserCreate, UserUpdate
from backend.users import service
from backend.web.dependencies import DbSession
from backend.web.paging import Cursor, Limit

router = APIRouter(prefix="/users", tags=["users"])


@router.post("", status_code=status.HTTP_201_CREATED, summary="Add a user")
def create_user(body: UserCreate, principal: Administrator, session: DbSession) -> User:
    """A new user; for administrators."""
    return service.create_user(session, body, principal)


@router.get("", summary="All users")
def list_users(
    _principal: Administrator, session: DbSession, cursor: Cursor = None, limit: Limit = 50
) -> Page[User]:
    """All users, newest first; for administrators."""
    return service.list_users(session, cursor, limit)


@router.patch("/{user_id}", summary="Change a user")
def update_user(
    user_id: UUID, body: UserUpdate, principal: Administrator, session: DbSession
) -> User:
    """Changes role, access or second factor, and unlocks the name; effective at once."""
    return service.update_user(session, user_id, body, principal)
