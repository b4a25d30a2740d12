"""One's own account: password, second factor, tokens of programs, open sessions."""

import streamlit as st
from pydantic import SecretStr, ValidationError

from backend.api_client.client import ApiClient
from backend.contracts.users import OpenSession, PasswordChange
from dashboard import session
from dashboard.components.form_errors import show_form_errors
from dashboard.components.formatting import escape, moment_text
from dashboard.components.personal_tokens import personal_tokens_section
from dashboard.components.second_factor import second_factor_section


def main() -> None:
    """Show everything that belongs to whoever is signed in."""
    api = session.current_api()
    user = session.current_user()
    st.title("Account")
    st.caption(f"{escape(user.username)} · {user.role.value}")
    _password(api)
    second_factor_section(api, user)
    personal_tokens_section(api)
    st.subheader("Open sessions")
    for opened in api.sessions.list():
        _session(api, opened)


def _password(api: ApiClient) -> None:
    st.subheader("Password")
    with st.popover("Change the password", icon=":material/password:"), st.form("password"):
        current = st.text_input(
            "Present password", type="password", autocomplete="current-password"
        )
        new = st.text_input(
            "New password", type="password", autocomplete="new-password",
            help="12 characters or more",
        )  # fmt: skip
        again = st.text_input("New password again", type="password", autocomplete="new-password")
        if st.form_submit_button("Change it", type="primary"):
            _change_password(api, current, new, again)


def _change_password(api: ApiClient, current: str, new: str, again: str) -> None:
    if new != again:
        st.error("The new password was not typed the same twice.")
        return
    try:
        change = PasswordChange(current_password=SecretStr(current), new_password=SecretStr(new))
    except ValidationError as error:
        show_form_errors(error)
        return
    with session.problems_shown():
        api.account.change_password(change)
        st.success("The password is changed. Other sessions and personal tokens have ended.")


def _session(api: ApiClient, opened: OpenSession) -> None:
    zone = session.viewer_zone()
    left, right = st.columns([6, 1], vertical_alignment="center")
    left.markdown(
        f"since {moment_text(opened.created_at, zone)} · from "
        f"{escape(opened.address or 'an unknown address')}"
        + (" · **this one**" if opened.is_current else "")
    )
    if not opened.is_current and right.button("End", key=f"account.session.{opened.id}"):
        api.sessions.end(opened.id)
        st.rerun()


main()
