"""Signing in and users."""

from collections.abc import Iterator

from backend.api_client.transport import Transport
from backend.contracts.users import Session, SignIn, User, UserCreate


class Sessions:
    """`/sessions`: signing in and out."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def create(self, credentials: SignIn) -> Session:
        """Exchange a name and a password for a session token."""
        return self._transport.post("/sessions", Session, credentials)

    def delete_current(self) -> None:
        """End the session whose token this client sends."""
        self._transport.call("DELETE", "/sessions/current")


class Users:
    """`/users`: who may sign in."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def me(self) -> User:
        """The user whose token this client sends."""
        return self._transport.get("/users/me", User)

    def create(self, user: UserCreate) -> User:
        """Add a user; for administrators."""
        return self._transport.post("/users", User, user)

    def list(self) -> Iterator[User]:
        """All users, newest first; for administrators."""
        return self._transport.walk("/users", User)
