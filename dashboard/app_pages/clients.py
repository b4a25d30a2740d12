"""Participants: who there is, how one joins, and their data."""

import streamlit as st

from dashboard import session
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
        return
    listed, joining, builtin, data = st.tabs(
        ["All clients", "Enrolment keys", "Add a built-in client", "Upload data"],
        key="clients.tab",
    )
    with listed:
        if clients:
            client_table(clients)
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


main()
