"""From a bearer secret to whoever holds it."""

from datetime import datetime
from uuid import UUID

from sqlalchemy.orm import Session

from backend.auth import repository
from backend.auth.principals import ClientPrincipal, Principal, UserPrincipal, role_within
from backend.auth.secrets import SecretKind, hash_secret, new_secret
from backend.contracts.users import TokenScope
from backend.db.models import Client, Token, User
from backend.errors import UnauthenticatedError


def authenticate(session: Session, secret: str, address: str | None) -> Principal:
    """Whoever holds a secret.

    A client's `last_seen_at` moves. The transaction ends here: a call that is refused later still
    shows that the client is alive, and no connection waits while a body arrives.

    Raises:
        UnauthenticatedError: unknown, revoked or expired; the code tells which.
    """
    found = repository.find_token(session, hash_secret(secret))
    if found is None:
        raise UnauthenticatedError(
            "The bearer token is not known here. Sign in again, or check the client's credential."
        )
    token, user, client, has_expired = found
    if user is not None:
        if token.scope is None:
            _check(token, has_expired, "session", "Sign in again.")
        else:
            _check(token, has_expired, "token", "Make a new one in your account.")
            repository.touch_token(session, token.id)
        if user.disabled_at is not None:
            raise UnauthenticatedError(
                f"User {user.username} is disabled. Ask an administrator.", code="user_disabled"
            )
        role = role_within(user.role, token.scope)
        principal = UserPrincipal(
            user.id, user.username, role, token.id, address, token.scope, user.role
        )
        session.commit()
        return principal
    if client is None:
        raise UnauthenticatedError("The bearer token belongs to nobody. Sign in again.")
    _check(token, has_expired, "credential", "Ask an operator for a new one.")
    repository.touch_client(session, client.id)
    session.commit()
    return ClientPrincipal(client.id, client.name, token.id, address)


def issue_session(
    session: Session, user: User, expires_at: datetime, address: str | None = None
) -> tuple[UUID, str]:
    """A fresh session of a user, and its secret."""
    secret = new_secret(SecretKind.SESSION)
    token = Token(
        secret_hash=hash_secret(secret), user_id=user.id, expires_at=expires_at, address=address
    )
    session.add(token)
    session.flush()
    return token.id, secret


def issue_personal_token(
    session: Session, user_id: UUID, name: str, scope: TokenScope, expires_at: datetime
) -> tuple[Token, str]:
    """A fresh token with which a program acts for a user, and its secret."""
    secret = new_secret(SecretKind.PERSONAL)
    token = Token(
        secret_hash=hash_secret(secret),
        user_id=user_id,
        name=name,
        scope=scope,
        expires_at=expires_at,
    )
    session.add(token)
    session.flush()
    return token, secret


def issue_credential(session: Session, client: Client) -> str:
    """A fresh credential of a client; it holds until it is revoked."""
    secret = new_secret(SecretKind.CREDENTIAL)
    session.add(Token(secret_hash=hash_secret(secret), client_id=client.id))
    return secret


def revoke_session(session: Session, token_id: UUID) -> None:
    """Signs a user out."""
    repository.revoke_token(session, token_id)


def revoke_credentials(session: Session, client_id: UUID) -> int:
    """Locks a client out; gives how many credentials ended."""
    return repository.revoke_client_tokens(session, client_id)


def _check(token: Token, has_expired: bool, what: str, remedy: str) -> None:
    if token.revoked_at is not None:
        raise UnauthenticatedError(f"This {what} was ended. {remedy}", code=f"{what}_revoked")
    if has_expired:
        raise UnauthenticatedError(f"This {what} has expired. {remedy}", code=f"{what}_expired")
