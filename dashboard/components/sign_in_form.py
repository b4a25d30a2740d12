"""Signing in, and taking up the session that the tab had before a reload."""

import streamlit as st
from pydantic import ValidationError

from backend.api_client.errors import ApiClientError, UnauthenticatedError
from backend.contracts.users import SECOND_FACTOR_REQUIRED
from dashboard import session
from dashboard.components import browser_session
from dashboard.components.formatting import escape

TICKET = "ticket"  # in the address of whoever comes back from the sign-in service
NEEDS_CODE = "sign_in.needs_code"  # the API asked for the second factor


def sign_in_form() -> None:
    """Ask for name and password; reruns the page once somebody is in."""
    if TICKET in st.query_params:
        _redeem(st.query_params.pop(TICKET))
    elif session.may_resume():
        _resume()
    else:
        browser_session.clear_token()
    _, middle, _ = st.columns([1, 1.1, 1])
    with middle:
        st.space("medium")
        st.title("FedBraid")
        st.caption("Federated fine-tuning of models that differ in everything.")
        notice = st.session_state.get(session.NOTICE)
        if notice:
            st.info(notice, icon=":material/info:")
        with st.form("sign_in"):
            username = st.text_input("User name", autocomplete="username", max_chars=100)
            password = st.text_input("Password", type="password", autocomplete="current-password")
            code = _code_field() if NEEDS_CODE in st.session_state else ""
            sent = st.form_submit_button("Sign in", type="primary", width="stretch")
        _sign_in_service()
        st.caption(
            "First start? `fedbraid up` prints the administrator's password in its terminal."
        )
        if sent:
            _sign_in(username.strip(), password, code.strip())


def _code_field() -> str:
    st.info("This account has a second factor.", icon=":material/lock:")
    return st.text_input(
        "Code", autocomplete="one-time-code", max_chars=20,
        help="The six digits that your authenticator app shows now, or a recovery code.",
    )  # fmt: skip


def _sign_in(username: str, password: str, code: str) -> None:
    if not username or not password:
        st.error("Enter a user name and a password.")
        return
    try:
        session.sign_in(username, password, code or None)
    except ValidationError:
        st.error("A code is six digits, or a recovery code such as `1a2b3c4d-5e6f7a8b`.")
    except UnauthenticatedError as error:
        if error.code == SECOND_FACTOR_REQUIRED and NEEDS_CODE not in st.session_state:
            st.session_state[NEEDS_CODE] = True
            st.rerun()
        st.error(escape(str(error)), icon=":material/error:")
    except ApiClientError as error:
        st.error(escape(str(error)), icon=":material/error:")
    else:
        st.session_state.pop(session.NOTICE, None)
        st.session_state.pop(NEEDS_CODE, None)
        st.rerun()


def _sign_in_service() -> None:
    """A link to the sign-in service, where the platform has one."""
    try:
        url = session.connect(None).sessions.offer().url
    except ApiClientError:
        return  # whoever tries to sign in is told why that does not work
    if url is not None:
        st.link_button(
            "Sign in with your organisation", url, icon=":material/login:", width="stretch"
        )


def _redeem(ticket: str) -> None:
    try:
        session.sign_in_with_ticket(ticket)
    except ApiClientError as error:
        st.session_state[session.NOTICE] = str(error)
        return
    st.session_state.pop(session.NOTICE, None)
    st.rerun()


def _resume() -> None:
    token = browser_session.read_token()
    if not token:
        return
    try:
        session.resume(token)
    except UnauthenticatedError:
        session.forget(session.ENDED)
    except ApiClientError as error:
        st.error(escape(str(error)), icon=":material/cloud_off:")
        return
    st.rerun()
