"""Who may sign in; for administrators."""

import pandas as pd
import streamlit as st
from pydantic import SecretStr, ValidationError

from backend.api_client.client import ApiClient
from backend.contracts.enums import Role
from backend.contracts.users import User, UserCreate, UserUpdate
from dashboard import session
from dashboard.components.form_errors import show_form_errors
from dashboard.components.formatting import escape, moment_text

ROLES: list[Role] = [Role.VIEWER, Role.OPERATOR, Role.ADMINISTRATOR]  # the least first


def main() -> None:
    """Show the list, what may be changed about each, and a form for one more."""
    st.title("Users")
    api = session.current_api()
    users = list(api.users.list())
    st.dataframe(pd.DataFrame([_row(user) for user in users]), hide_index=True)
    others = {user.username: user for user in users if user.id != session.current_user().id}
    if others:
        st.subheader("Change a user")
        _change(api, others[st.selectbox("User", list(others))])
    st.subheader("Add a user")
    with st.form("user", clear_on_submit=False):
        username = st.text_input("User name", max_chars=100)
        password = st.text_input(
            "Password", type="password", help="12 characters or more",
            autocomplete="new-password",
        )  # fmt: skip
        role = st.selectbox("Role", ROLES, format_func=str)
        sent = st.form_submit_button("Add user", type="primary")
    if sent:
        _add(api, username, password, role)


def _row(user: User) -> dict[str, str]:
    zone = session.viewer_zone()
    return {
        "User": user.username,
        "Role": user.role.value,
        "Second factor": "on" if user.has_second_factor else "off",
        "May sign in": "yes" if user.disabled_at is None else "no, disabled",
        "Since": moment_text(user.created_at, zone),
    }


def _change(api: ApiClient, user: User) -> None:
    """The form is keyed by user: what was chosen for one must not meet the next."""
    role = st.selectbox(
        "Role of this user", ROLES, index=ROLES.index(user.role), format_func=str,
        key=f"users.role.{user.id}",
    )  # fmt: skip
    with st.container(horizontal=True):
        if st.button("Change the role", disabled=role is user.role):
            _update(api, user, UserUpdate(role=role), f"is {role.value} now")
        if user.disabled_at is None:
            if st.button("Disable", icon=":material/block:"):
                _update(api, user, UserUpdate(is_disabled=True), "is disabled; all sessions ended")
        elif st.button("Enable", icon=":material/check:"):
            _update(api, user, UserUpdate(is_disabled=False), "may sign in again")
        if user.has_second_factor and st.button("Reset second factor", icon=":material/lock_open:"):
            change = UserUpdate(reset_second_factor=True)
            _update(api, user, change, "signs in with the password alone")


def _update(api: ApiClient, user: User, change: UserUpdate, result: str) -> None:
    with session.problems_shown():
        api.users.update(user.id, change)
        st.toast(escape(f"{user.username} {result}."), icon=":material/check:")
        st.rerun()


def _add(api: ApiClient, username: str, password: str, role: Role) -> None:
    try:
        request = UserCreate(username=username, password=SecretStr(password), role=role)
    except ValidationError as error:
        show_form_errors(error)
        return
    with session.problems_shown():
        api.users.create(request)
        st.toast(escape(f"{username} may sign in now."), icon=":material/check:")
        st.rerun()


main()
