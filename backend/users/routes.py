"""`/sessions` and `/users`."""

from fastapi import APIRouter, Request, status

from backend.auth.dependencies import Administrator, Viewer
from backend.contracts.common import Page
from backend.contracts.users import Session, SignIn, User, UserCreate
from backend.users import service
from backend.web.dependencies import AppSettings, DbSession
from backend.web.paging import Cursor, Limit

router = APIRouter(tags=["users"])


@router.post("/sessions", status_code=status.HTTP_201_CREATED, summary="Sign in")
def sign_in(body: SignIn, request: Request, session: DbSession, settings: AppSettings) -> Session:
    """A session token for a name and a password; send it as `Authorization: Bearer ...`."""
    address = request.client.host if request.client else None
    return service.sign_in(session, body, settings.session_hours, address)


@router.delete("/sessions/current", status_code=status.HTTP_204_NO_CONTENT, summary="Sign out")
def sign_out(principal: Viewer, session: DbSession) -> None:
    """Ends the session whose token is sent."""
    service.sign_out(session, principal)


@router.get("/users/me", summary="Who is signed in")
def get_me(principal: Viewer, session: DbSession) -> User:
    """The user whose token is sent."""
    return service.get_user(session, principal.id)


@router.post("/users", status_code=status.HTTP_201_CREATED, summary="Add a user")
def create_user(body: UserCreate, principal: Administrator, session: DbSession) -> User:
    """A new user; for administrators."""
    return service.create_user(session, body, principal)


@router.get("/users", summary="All users")
def list_users(
    _principal: Administrator, session: DbSession, cursor: Cursor = None, limit: Limit = 50
) -> Page[User]:
    """All users, newest first; for administrators."""
    return service.list_users(session, cursor, limit)
