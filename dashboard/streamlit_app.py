"""The dashboard's entry: who is here, which pages there are, and what a page may fail with."""

from pathlib import Path

import streamlit as st

from backend.contracts.enums import Role
from dashboard import pages, session
from dashboard.components import browser_session
from dashboard.components.formatting import escape
from dashboard.components.sign_in_form import sign_in_form

LOGO = Path(__file__).with_name("logo.svg")

st.set_page_config(page_title="FedBraid", page_icon="🧬", layout="wide")
st.logo(LOGO, size="large")


def main() -> None:
    """Show the sign-in form, or the page that the address names."""
    signed_in = session.is_signed_in()
    page = st.navigation(
        [
            st.Page(
                pages.FEDERATIONS, title="Federations", icon=":material/hub:",
                url_path="federations", default=True,
            ),
            st.Page(
                pages.NEW_FEDERATION, title="New federation", icon=":material/add_circle:",
                url_path="new-federation",
                visibility="visible" if signed_in and session.may_operate() else "hidden",
            ),
            st.Page(
                pages.CLIENTS, title="Clients", icon=":material/devices:", url_path="clients"
            ),
            st.Page(
                pages.USERS, title="Users", icon=":material/group:", url_path="users",
                visibility="visible" if signed_in and _is_administrator() else "hidden",
            ),
            st.Page(
                pages.AUDIT, title="Audit trail", icon=":material/history:", url_path="audit",
                visibility="visible" if signed_in and _is_administrator() else "hidden",
            ),
            st.Page(
                pages.ACCOUNT, title="Account", icon=":material/account_circle:",
                url_path="account",
            ),
            st.Page(
                pages.FEDERATION, title="Federation", url_path="federation", visibility="hidden"
            ),
            st.Page(pages.CLIENT, title="Client", url_path="client", visibility="hidden"),
            st.Page(pages.RUN, title="Run", url_path="run", visibility="hidden"),
            st.Page(
                pages.COMPARISON, title="Comparison", url_path="comparison", visibility="hidden"
            ),
        ],
        position="sidebar" if signed_in else "hidden",
    )  # fmt: skip
    if not signed_in:
        sign_in_form()
        return
    _sidebar()
    with session.problems_shown():
        page.run()


def _is_administrator() -> bool:
    return session.current_user().role is Role.ADMINISTRATOR


def _sidebar() -> None:
    user = session.current_user()
    with st.sidebar:
        st.caption(f"Signed in as **{escape(user.username)}** ({user.role.value})")
        st.button("Sign out", icon=":material/logout:", on_click=session.sign_out)
        browser_session.store_token(session.current_token())


main()
