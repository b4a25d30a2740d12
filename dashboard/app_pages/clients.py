"""Participants: who there is, how one joins, and their data."""

from collections.abc import Sequence

import streamlit as st

from backend.contracts.clients import Client
from dashboard import pages, session
from dashboard.components.client_forms import add_builtin_client, upload_dataset
from dashboard.components.client_table import client_table
from dashboard.components.enrolment import enrolment_keys


def main() -> None:
    """Show the clients, then what can be done about them."""
    st.title("Clients")
    api = session.current_api()
    clients = sorted(api.clients.list(), key=lambda client: client.name.lower())
    if not session.may_operate():
        client_table(clients)
        _open_one(clients)
        return
    listed, joining, builtin, data = st.tabs(
        ["All clients", "Enrolment keys", "Add a built-in client", "Upload data"],
        key="clients.tab",
    )
    with listed:
        if clients:
            client_table(clients)
            _open_one(clients)
        else:
            st.info(
                "No client yet. Make an **enrolment key** and hand it to a participant, or "
                "**add a built-in client** to try things out.",
                icon=":material/devices:",
            )
    with joining:
        enrolment_keys(api)
    with builtin:
        add_builtin_client(api)
    with data:
        upload_dataset(api, clients)


def _open_one(clients: Sequence[Client]) -> None:
    """A way to one client's own page."""
    with st.container(horizontal=True, vertical_alignment="bottom"):
        chosen = st.selectbox(
            "One client", clients, index=None, format_func=lambda client: client.name,
            placeholder="Choose a client", key="clients.one", width=320,
        )  # fmt: skip
        if st.button("Open", disabled=chosen is None) and chosen is not None:
            st.switch_page(pages.CLIENT, query_params={"id": str(chosen.id)})


main()
