"""Personal tokens, with which programs act in one's name."""

import streamlit as st
from pydantic import ValidationError

from backend.api_client.client import ApiClient
from backend.contracts.users import NewPersonalToken, PersonalToken, PersonalTokenCreate, TokenScope
from dashboard import session
from dashboard.components.form_errors import show_form_errors
from dashboard.components.formatting import escape, moment_text

FRESH = "personal_tokens.fresh"  # the token that is on the screen
SCOPES: list[TokenScope] = [TokenScope.READ, TokenScope.OPERATE, TokenScope.ADMINISTER]


def personal_tokens_section(api: ApiClient) -> None:
    """List, end and make tokens; a new one is shown once."""
    st.subheader("Personal tokens")
    st.caption("For programs: `Authorization: Bearer fbp_...`. Never more than your role allows.")
    fresh: NewPersonalToken | None = st.session_state.get(FRESH)
    if fresh is not None:
        _show(fresh)
        return
    for token in api.account.list_tokens():
        _row(api, token)
    with st.popover("Make a token", icon=":material/add:"), st.form("personal_token"):
        name = st.text_input("Name of the program", max_chars=100)
        scope = st.selectbox("It may", SCOPES, format_func=str)
        days = st.number_input("Days until it expires", 1, 366, 90)
        if st.form_submit_button("Make it", type="primary"):
            _make(api, name, scope, days)


def _row(api: ApiClient, token: PersonalToken) -> None:
    zone = session.viewer_zone()
    left, middle, right = st.columns([2, 4, 1], vertical_alignment="center")
    left.markdown(f"{escape(token.name)} ({token.scope.value})")
    middle.caption(
        f"until {moment_text(token.expires_at, zone)} · "
        + (f"used {moment_text(token.last_used_at, zone)}" if token.last_used_at else "never used")
    )
    if right.button("End", key=f"personal_tokens.end.{token.id}"):
        api.account.end_token(token.id)
        st.rerun()


def _make(api: ApiClient, name: str, scope: TokenScope, days: int) -> None:
    try:
        wanted = PersonalTokenCreate(name=name, scope=scope, days=days)
    except ValidationError as error:
        show_form_errors(error)
        return
    with session.problems_shown():
        st.session_state[FRESH] = api.account.create_token(wanted)
        st.rerun()


def _show(fresh: NewPersonalToken) -> None:
    with st.container(border=True):
        st.warning(
            f"The token {escape(fresh.name)} is shown now and never again.", icon=":material/key:"
        )
        st.code(fresh.token, language=None)
        if st.button("I have copied it", icon=":material/check:", key="personal_tokens.copied"):
            del st.session_state[FRESH]
            st.rerun()
