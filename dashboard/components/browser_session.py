"""Keeps the session token in the tab's `sessionStorage`, so that a reload does not sign out.

The token is never in a URL or a cookie, other tabs and other origins cannot read it, and the
browser drops it with the tab. The value goes over the same connection as the password did.
"""

from typing import Any

import streamlit as st

KEY = "browser_session"

_JS = """
const NAME = "fedbraid.session";
export default function ({ data, setStateValue }) {
  if (data.action === "store") sessionStorage.setItem(NAME, data.token);
  if (data.action === "clear") sessionStorage.removeItem(NAME);
  if (data.action === "read") setStateValue("token", sessionStorage.getItem(NAME) ?? "");
}
"""

_component = st.components.v2.component("fedbraid_browser_session", js=_JS)


def read_token() -> str | None:
    """What the tab kept: None while it has not answered yet, empty when it keeps nothing."""
    result: Any = _component(
        key=f"{KEY}.read", data={"action": "read"}, on_token_change=_nothing, height=1
    )
    token = result.token
    return token if isinstance(token, str) else None


def store_token(token: str) -> None:
    """Keep the token in the tab until it is closed."""
    _component(key=f"{KEY}.store", data={"action": "store", "token": token}, height=1)


def clear_token() -> None:
    """Make the tab forget."""
    _component(key=f"{KEY}.clear", data={"action": "clear"}, height=1)


def _nothing() -> None:
    """A callback makes the browser's answer rerun the page; there is nothing else to do."""
