"""`/oidc`: signing in with the accounts of one's organisation."""

from typing import Annotated

from fastapi import APIRouter, Cookie, Query, Request, status
from fastapi.responses import RedirectResponse

from backend.contracts.oidc import SignInOffer, TicketRedemption
from backend.contracts.users import Session
from backend.oidc import service
from backend.web.dependencies import AppSettings, DbSession
from backend.web.problems import problem_answers

router = APIRouter(prefix="/oidc", tags=["sessions"])

COOKIE = "fedbraid_sign_in"
COOKIE_PATH = "/api/v1/oidc"
_ELSEWHERE = {**problem_answers(502), 303: {"description": "The browser goes elsewhere."}}

Text = Annotated[str, Query(min_length=1, max_length=4000)]


@router.get("", summary="Is there a sign-in service?")
def offer(settings: AppSettings) -> SignInOffer:
    """Where a browser begins to sign in with the configured service, if there is one."""
    callback = settings.oidc_redirect_url
    if settings.oidc_issuer is None or callback is None:
        return SignInOffer(url=None)
    return SignInOffer(url=f"{callback.removesuffix('/callback')}/sign-in")


@router.get(
    "/sign-in",
    summary="Begin to sign in",
    status_code=status.HTTP_303_SEE_OTHER,
    response_class=RedirectResponse,
    responses=_ELSEWHERE,
)
def begin(settings: AppSettings) -> RedirectResponse:
    """Sends the browser to the sign-in service; a sealed cookie remembers that it was this one."""
    url, sealed = service.begin(settings)
    response = RedirectResponse(url, status.HTTP_303_SEE_OTHER)
    response.set_cookie(
        COOKIE,
        sealed,
        max_age=service.ATTEMPT_SECONDS,
        path=COOKIE_PATH,
        secure=(settings.oidc_redirect_url or "").startswith("https://"),
        httponly=True,
        samesite="lax",
    )
    return response


@router.get(
    "/callback",
    summary="Come back from the sign-in service",
    status_code=status.HTTP_303_SEE_OTHER,
    response_class=RedirectResponse,
    responses=_ELSEWHERE,
)
def complete(
    state: Text,
    code: Text,
    session: DbSession,
    settings: AppSettings,
    sealed: Annotated[str | None, Cookie(alias=COOKIE)] = None,
) -> RedirectResponse:
    """Sends the browser to the dashboard with a ticket that works once, within a minute."""
    url = service.complete(session, settings, sealed, state, code)
    response = RedirectResponse(url, status.HTTP_303_SEE_OTHER)
    response.delete_cookie(COOKIE, path=COOKIE_PATH)
    return response


@router.post("/session", status_code=status.HTTP_201_CREATED, summary="Redeem a sign-in ticket")
def redeem(
    body: TicketRedemption, request: Request, session: DbSession, settings: AppSettings
) -> Session:
    """A session token for the ticket that the dashboard got in its address."""
    address = request.client.host if request.client else None
    return service.redeem(session, settings, body.ticket.get_secret_value(), address)
