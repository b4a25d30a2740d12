"""`/users/me`: what belongs to whoever is signed in."""

from uuid import UUID

from fastapi import APIRouter, status

from backend.account import service
from backend.auth.dependencies import SignedIn, Viewer
from backend.contracts.users import (
    NewPersonalToken,
    PasswordChange,
    PersonalToken,
    PersonalTokenCreate,
    RecoveryCodes,
    SecondFactorCode,
    SecondFactorOffer,
    User,
)
from backend.users.service import get_user
from backend.web.dependencies import AppSettings, DbSession

router = APIRouter(prefix="/users/me", tags=["account"])


@router.get("", summary="Who is signed in")
def get_me(principal: Viewer, session: DbSession) -> User:
    """The user whose token is sent."""
    return get_user(session, principal.id)


@router.post("/password", status_code=status.HTTP_204_NO_CONTENT, summary="Change your password")
def change_password(body: PasswordChange, principal: SignedIn, session: DbSession) -> None:
    """Sets a new password; all your other sessions and your personal tokens end."""
    service.change_password(session, principal, body)


@router.post("/tokens", status_code=status.HTTP_201_CREATED, summary="Make a token for a program")
def create_token(
    body: PersonalTokenCreate, principal: SignedIn, session: DbSession
) -> NewPersonalToken:
    """A personal token; its secret is shown this once."""
    return service.create_token(session, principal, body)


@router.get("/tokens", summary="Your personal tokens")
def list_tokens(principal: SignedIn, session: DbSession) -> list[PersonalToken]:
    """The personal tokens that count, newest first."""
    return service.list_tokens(session, principal)


@router.delete(
    "/tokens/{token_id}", status_code=status.HTTP_204_NO_CONTENT, summary="End a personal token"
)
def end_token(token_id: UUID, principal: SignedIn, session: DbSession) -> None:
    """The token counts no more, at once."""
    service.end_token(session, principal, token_id)


@router.post("/second-factor", status_code=status.HTTP_201_CREATED, summary="Offer a second factor")
def offer_second_factor(
    principal: SignedIn, session: DbSession, settings: AppSettings
) -> SecondFactorOffer:
    """A secret for an authenticator app; it counts once a code confirms it."""
    return service.offer_second_factor(session, principal, settings)


@router.post("/second-factor/confirmation", summary="Switch the second factor on")
def confirm_second_factor(
    body: SecondFactorCode, principal: SignedIn, session: DbSession, settings: AppSettings
) -> RecoveryCodes:
    """From now on signing in needs a code; the answer holds recovery codes, shown this once."""
    return service.confirm_second_factor(session, principal, body, settings)


@router.post(
    "/second-factor/removal",
    status_code=status.HTTP_204_NO_CONTENT,
    summary="Switch the second factor off",
)
def remove_second_factor(
    body: SecondFactorCode, principal: SignedIn, session: DbSession, settings: AppSettings
) -> None:
    """Needs a code once more."""
    service.remove_second_factor(session, principal, body, settings)
