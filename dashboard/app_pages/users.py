"""Who may sign in; for administrators."""

import pandas as pd
import streamlit as st
from pydantic import SecretStr, ValidationError

from backend.api_client.errors import ApiError, UnauthenticatedError
from backend.contracts.enums import Role
from backend.contracts.users import UserCreate
from dashboard import session
from dashboard.components.formatting import escape, moment_text

ROLES: list[Role] = [Role.VIEWER, Role.OPERATOR, Role.ADMINISTRATOR]  # the least first


def main() -> None:
    """Show the list and a form for one more."""
    st.title("Users")
    api = session.current_api()
    zone = session.viewer_zone()
    st.dataframe(
        pd.DataFrame(
            [
                {
                    "User": user.username,
                    "Role": user.role.value,
                    "Since": moment_text(user.created_at, zone),
                }
                for user in api.users.list()
            ]
        ),
        hide_index=True,
    )
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
        _add(username, password, role)


def _add(username: str, password: str, role: Role) -> None:
    try:
        request = UserCreate(username=username, password=SecretStr(password), role=role)
        session.current_api().users.create(request)
    except ValidationError as error:
        for item in error.errors(include_url=False, include_input=False):
            st.error(escape(f"{'.'.join(map(str, item['loc']))}: {item['msg']}"))
    except UnauthenticatedError:
        raise
    except ApiError as error:
        st.error(escape(str(error)))
    else:
        st.toast(escape(f"{username} may sign in now."), icon=":material/check:")
        st.rerun()


main()
