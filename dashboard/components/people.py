"""The users who work in a federation, and who else sees it."""

import streamlit as st
from pydantic import ValidationError

from backend.api_client.client import ApiClient
from backend.contracts.enums import Role
from backend.contracts.federations import (
    FederationDetail,
    FederationMember,
    FederationMemberAdd,
    FederationUpdate,
    Visibility,
)
from dashboard import session
from dashboard.components.form_errors import show_form_errors
from dashboard.components.formatting import escape

ROLES: list[Role] = [Role.VIEWER, Role.OPERATOR]
SEEN_BY = {
    Visibility.MEMBERS: "Only these users and administrators see this federation.",
    Visibility.PLATFORM: "All users of the platform see this federation.",
}


def people_section(api: ApiClient, federation: FederationDetail) -> None:
    """List the users; operators add, remove and decide who else sees the federation."""
    st.subheader("People")
    st.caption(SEEN_BY[federation.visibility])
    for member in api.federations.members(federation.id):
        _row(api, federation, member)
    if not session.may_operate():
        return
    with st.container(horizontal=True):
        with st.popover("Add a user", icon=":material/person_add:"), st.form("people.add"):
            username = st.text_input("User name", max_chars=100)
            role = st.selectbox("Role here", ROLES, format_func=str)
            if st.form_submit_button("Add", type="primary"):
                _add(api, federation, username, role)
        _visibility(api, federation)


def _row(api: ApiClient, federation: FederationDetail, member: FederationMember) -> None:
    left, right = st.columns([6, 1], vertical_alignment="center")
    left.markdown(f"{escape(member.username)} ({member.role.value})")
    if session.may_operate() and right.button("Remove", key=f"people.remove.{member.user_id}"):
        with session.problems_shown():
            api.federations.remove_member(federation.id, member.user_id)
            st.rerun()


def _add(api: ApiClient, federation: FederationDetail, username: str, role: Role) -> None:
    try:
        member = FederationMemberAdd.model_validate({"username": username, "role": role})
    except ValidationError as error:
        show_form_errors(error)
        return
    with session.problems_shown():
        api.federations.add_member(federation.id, member)
        st.rerun()


def _visibility(api: ApiClient, federation: FederationDetail) -> None:
    is_open = federation.visibility is Visibility.PLATFORM
    label, other = (
        ("Close it to all but these users", Visibility.MEMBERS)
        if is_open
        else ("Open it to all users", Visibility.PLATFORM)
    )
    if st.button(label, icon=":material/lock:" if is_open else ":material/lock_open:"):
        with session.problems_shown():
            api.federations.update(federation.id, FederationUpdate(visibility=other))
            st.rerun()
