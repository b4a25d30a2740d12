"""What routes ask for: somebody who may do this."""

from collections.abc import Callable
from typing import Annotated
from uuid import UUID

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from backend.auth.principals import ClientPrincipal, Principal, UserPrincipal
from backend.auth.service import authenticate
from backend.contracts.enums import Role
from backend.errors import ForbiddenError, UnauthenticatedError
from backend.web.dependencies import DbSession

_bearer = HTTPBearer(
    auto_error=False,
    description="A session (`fbs_...`), a personal token (`fbp_...`) or a client's credential "
    "(`fbc_...`).",
)


def current_principal(
    request: Request,
    session: DbSession,
    credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)],
) -> Principal:
    """Whoever sent the request.

    Raises:
        UnauthenticatedError: no token, or none that counts.
    """
    if credentials is None:
        raise UnauthenticatedError(
            "This needs `Authorization: Bearer ...`: sign in with POST /api/v1/sessions, or send "
            "the credential that the client got when it registered."
        )
    address = request.client.host if request.client else None
    return authenticate(session, credentials.credentials, address)


AnyPrincipal = Annotated[Principal, Depends(current_principal)]
"""A user of any role, or a client."""


def require(role: Role) -> Callable[[Principal], UserPrincipal]:
    """A dependency that lets users of `role` or a stronger one pass."""

    def check(principal: AnyPrincipal) -> UserPrincipal:
        if isinstance(principal, ClientPrincipal):
            raise ForbiddenError(
                f"This is for users with the role {role.value}; a client's credential was sent."
            )
        if not principal.has(role):
            raise ForbiddenError(
                f"This needs the role {role.value}; {principal.name} has {principal.role.value}"
                + (
                    ". Ask an administrator."
                    if principal.scope is None
                    else f" with a token of scope {principal.scope.value}. Use another token."
                )
            )
        return principal

    return check


def current_session(
    principal: Annotated[UserPrincipal, Depends(require(Role.VIEWER))],
) -> UserPrincipal:
    """A user who signed in, for what a program with a personal token must not do.

    Raises:
        ForbiddenError: a personal token was sent.
    """
    if principal.scope is not None:
        raise ForbiddenError(
            "A personal token may not do this: sign in with POST /api/v1/sessions.",
            code="session_needed",
        )
    return principal


def current_client(principal: AnyPrincipal) -> ClientPrincipal:
    """The client that sent the request.

    Raises:
        ForbiddenError: a user sent it.
    """
    if isinstance(principal, UserPrincipal):
        raise ForbiddenError("This is for clients: send the client's own credential (`fbc_...`).")
    return principal


def require_role_or_client(principal: Principal, role: Role, client_id: UUID) -> None:
    """Lets users of `role` pass, and the client `client_id` itself.

    Raises:
        ForbiddenError: somebody else.
    """
    if isinstance(principal, UserPrincipal):
        require(role)(principal)
    elif principal.id != client_id:
        raise ForbiddenError(
            f"Client {principal.name} may only reach what is its own, not what belongs to "
            f"client {client_id}."
        )


Viewer = Annotated[UserPrincipal, Depends(require(Role.VIEWER))]
Operator = Annotated[UserPrincipal, Depends(require(Role.OPERATOR))]
Administrator = Annotated[UserPrincipal, Depends(require(Role.ADMINISTRATOR))]
SignedIn = Annotated[UserPrincipal, Depends(current_session)]
"""A user of any role in a session of a person; personal tokens are refused."""
CurrentClient = Annotated[ClientPrincipal, Depends(current_client)]
