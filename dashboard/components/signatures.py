"""Signing keys of a client, and whether a federation demands signatures."""

import pandas as pd
import streamlit as st

from backend.api_client.client import ApiClient
from backend.contracts.clients import Client
from backend.contracts.enums import Execution
from backend.contracts.federations import FederationDetail, FederationUpdate
from dashboard import session
from dashboard.components.formatting import escape, moment_text

DEMANDED = "Updates of remote clients count only with a signature of their own key."
NOT_DEMANDED = (
    "Remote clients may send unsigned updates; one that has registered a key always has to sign."
)


def signing_keys_section(api: ApiClient, client: Client) -> None:
    """The keys that a remote client ever had; operators may retire a lost one."""
    if client.execution is not Execution.REMOTE:
        return
    st.subheader("Signing key")
    keys = list(api.clients.signing_keys(client.id))
    if not keys:
        st.caption("None: its updates are unsigned. Its agent makes one when started with --sign.")
        return
    zone = session.viewer_zone()
    st.dataframe(
        pd.DataFrame(
            {
                "Fingerprint (SHA-256)": key.fingerprint,
                "Since": moment_text(key.created_at, zone),
                "Retired": "" if key.retired_at is None else moment_text(key.retired_at, zone),
            }
            for key in keys
        ),
        hide_index=True,
    )
    if session.may_operate() and keys[0].retired_at is None:
        with st.popover("Retire the key", icon=":material/key_off:"):
            st.markdown(
                f"Is the key of {escape(client.name)} lost or stolen? Its agent may then register "
                "another one; what was signed before stays verifiable."
            )
            if st.button("Yes, retire it", type="primary", key="client.retire_key"):
                with session.problems_shown():
                    api.clients.retire_signing_key(client.id)
                    st.rerun()


def signatures_demand(api: ApiClient, federation: FederationDetail) -> None:
    """Whether updates must be signed; operators change it."""
    st.subheader("Signatures")
    st.caption(DEMANDED if federation.require_signatures else NOT_DEMANDED)
    if not session.may_operate():
        return
    label = "Demand signatures no longer" if federation.require_signatures else "Demand signatures"
    if st.button(label, icon=":material/signature:", key="federation.signatures"):
        wanted = FederationUpdate(require_signatures=not federation.require_signatures)
        with session.problems_shown():
            api.federations.update(federation.id, wanted)
            st.rerun()
