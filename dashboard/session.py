"""Who is signed in, in this browser tab only: tokens live in `st.session_state`, nowhere else."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import tzinfo

import streamlit as st

from backend.api_client.client import ApiClient
from backend.api_client.errors import ApiClientError, ApiUnreachableError, UnauthenticatedError
from backend.contracts.enums import Role
from backend.contracts.users import Session, User
from dashboard.components.formatting import escape, zone_of
from dashboard.options import api_url

TOKEN = "session.token"  # noqa: S105  (a key, not a secret)
USER = "session.user"
API = "session.api"
NOTICE = "session.notice"
ENDED_HERE = "session.ended_here"  # set once the tab must forget the token it keeps
ENDED = "Your session has ended. Please sign in again."


def connect(token: str | None) -> ApiClient:
    """A client of the API that this dashboard shows."""
    return ApiClient(api_url(), token)


def is_signed_in() -> bool:
    """True when this tab holds a token; it may have expired meanwhile."""
    return TOKEN in st.session_state


def sign_in(username: str, password: str, code: str | None = None) -> None:
    """Open a session and keep its token in this tab; `code`: of the second factor."""
    api = connect(None)
    _keep(api, api.sign_in(username, password, code))


def sign_in_with_ticket(ticket: str) -> None:
    """Open the session of whoever comes back from the sign-in service."""
    api = connect(None)
    session = api.sessions.redeem(ticket)
    api.use_token(session.token)
    _keep(api, session)


def _keep(api: ApiClient, session: Session) -> None:
    st.session_state[TOKEN] = session.token
    st.session_state[USER] = session.user
    st.session_state[API] = api


def refresh_user() -> None:
    """Read again who is signed in, after something about the account changed."""
    st.session_state[USER] = current_api().users.me()


def resume(token: str) -> None:
    """Take up a session that this tab had before it was reloaded."""
    api = connect(token)
    st.session_state[USER] = api.users.me()
    st.session_state[TOKEN] = token
    st.session_state[API] = api


def forget(notice: str | None = None) -> None:
    """Drop everything that belongs to the person, and say why on the sign-in page."""
    st.session_state.clear()
    st.session_state[ENDED_HERE] = True
    if notice:
        st.session_state[NOTICE] = notice


def sign_out() -> None:
    """End the session on the server, then forget it here."""
    try:
        current_api().sessions.delete_current()
    except UnauthenticatedError:
        forget()  # it had ended already: the result is the same
    except ApiUnreachableError:
        forget(
            "You are signed out here, but the server could not be told; "
            "the session ends there by itself."
        )
    else:
        forget("You are signed out.")


def may_resume() -> bool:
    """True until somebody signed out in this tab, or a kept token proved to be dead."""
    return ENDED_HERE not in st.session_state


def current_token() -> str:
    """The token of the signed-in user."""
    return str(st.session_state[TOKEN])


def current_api() -> ApiClient:
    """The API as the signed-in user."""
    api = st.session_state[API]
    assert isinstance(api, ApiClient)  # noqa: S101
    return api


def current_user() -> User:
    """The signed-in user."""
    user = st.session_state[USER]
    assert isinstance(user, User)  # noqa: S101
    return user


def may_operate() -> bool:
    """True for those who may change things; viewers only look."""
    return current_user().role is not Role.VIEWER


def is_administrator() -> bool:
    """True for those who may change the platform itself."""
    return current_user().role is Role.ADMINISTRATOR


def viewer_zone() -> tzinfo:
    """The time zone of the viewer's browser."""
    return zone_of(st.context.timezone)


@contextmanager
def problems_shown() -> Iterator[None]:
    """Turn what the API refuses into sentences on the page, and a lost session into sign-in."""
    try:
        yield
    except UnauthenticatedError:
        forget(ENDED)
        st.rerun()
    except ApiUnreachableError as error:
        st.error(
            escape(str(error)), icon=":material/cloud_off:", title="The platform is out of reach"
        )
        if st.button("Try again", icon=":material/refresh:", key="session.retry"):
            st.rerun()
    except ApiClientError as error:
        st.error(escape(str(error)), icon=":material/error:")
