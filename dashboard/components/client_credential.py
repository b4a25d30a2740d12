"""A client's credential: make a new one, or take it away."""

from uuid import UUID

import streamlit as st

from backend.api_client.client import ApiClient
from backend.contracts.clients import Client
from dashboard.components.formatting import escape

FRESH = "client_credential.fresh"  # (client id, credential) that is on the screen
REVOKED = "client_credential.revoked"


def credential_section(api: ApiClient, client: Client) -> None:
    """Rotate and revoke, each after a second press; a new credential is shown once."""
    st.subheader("Credential")
    st.caption(
        "With it the client, or its agent, speaks to the platform. Runs that need an agent wait "
        "while it has none."
    )
    fresh: tuple[UUID, str] | None = st.session_state.get(FRESH)
    if fresh is not None and fresh[0] == client.id:
        _show(fresh[1])
        return
    if st.session_state.pop(REVOKED, None) == client.id:
        st.success(
            f"{escape(client.name)} is locked out until it gets a new credential.",
            icon=":material/lock:",
        )
    with st.container(horizontal=True):
        with st.popover("Make a new credential", icon=":material/key:"):
            st.markdown("The present credential stops working at once. Hand the new one over.")
            if st.button("Yes, make a new one", type="primary", key="client.rotate"):
                made = api.clients.rotate_credential(client.id)
                st.session_state[FRESH] = (client.id, made.credential)
                st.rerun()
        with st.popover("Revoke", icon=":material/lock:"):
            st.markdown("Lock this client out? It can be let in again with a new credential.")
            if st.button("Yes, lock it out", type="primary", key="client.revoke"):
                api.clients.revoke_credential(client.id)
                st.session_state[REVOKED] = client.id
                st.rerun()


def _show(credential: str) -> None:
    with st.container(border=True):
        st.warning(
            "This credential is shown now and never again. Copy it into the file that the "
            "client's agent reads (`--credential-file`).",
            icon=":material/key:",
        )
        st.code(credential, language=None)
        if st.button("I have copied it", icon=":material/check:", key="client.copied"):
            del st.session_state[FRESH]
            st.rerun()
