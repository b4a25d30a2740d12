"""`/sessions`: signing in and out."""

from uuid import UUID

from fastapi import APIRouter, Request, status

from backend.auth.dependencies import SignedIn, Viewer
from backend.contracts.users import OpenSession, Session, SignIn
from backend.sessions import service
from backend.web.dependencies import AppSettings, DbSession

router = APIRouter(prefix="/sessions", tags=["sessions"])


@router.post("", status_code=status.HTTP_201_CREATED, summary="Sign in")
def sign_in(body: SignIn, request: Request, session: DbSession, settings: AppSettings) -> Session:
    """A session token for a name and a password; send it as `Authorization: Bearer ...`.

    Accounts with a second factor need its `code` too (401 `second_factor_required` without). After
    five failures in a row a name is locked for 15 minutes (429).
    """
    address = request.client.host if request.client else None
    return service.sign_in(session, body, settings, address)


@router.get("", summary="Where you are signed in")
def list_sessions(principal: SignedIn, session: DbSession) -> list[OpenSession]:
    """Your sessions that count, newest first."""
    return service.list_sessions(session, principal)


@router.delete("/current", status_code=status.HTTP_204_NO_CONTENT, summary="Sign out")
def sign_out(principal: Viewer, session: DbSession) -> None:
    """Ends the session whose token is sent."""
    service.sign_out(session, principal)


@router.delete("/{session_id}", status_code=status.HTTP_204_NO_CONTENT, summary="End a session")
def end_session(session_id: UUID, principal: SignedIn, session: DbSession) -> None:
    """Ends another session of yours, such as one on a lost machine; it counts no more at once."""
    service.end_session(session, principal, session_id)
