"""What a federation stores, how much it may, and how long ended runs keep their updates."""

import streamlit as st
from pydantic import ValidationError

from backend.api_client.client import ApiClient
from backend.contracts.federations import FederationDetail
from backend.contracts.storage import (
    BlobUse,
    FederationStorage,
    StoragePolicy,
    StoragePolicyChange,
)
from dashboard import session
from dashboard.components.form_errors import show_form_errors
from dashboard.components.formatting import bytes_text, counted

MEBIBYTE = 2**20
TITLES = {
    BlobUse.STATES: "States of the server",
    BlobUse.PLANS: "Sent to clients",
    BlobUse.UPDATES: "Sent by clients",
    BlobUse.PRIVATE: "Kept for managed clients",
    BlobUse.ADAPTERS: "Adapters",
    BlobUse.UPLOADS: "Uploads on their way",
    BlobUse.DATASETS: "Uploaded data",
    BlobUse.PROBE_SETS: "Probe sets",
}


def storage_section(api: ApiClient, federation: FederationDetail) -> None:
    """Show stored bytes by kind; administrators set the limits."""
    st.subheader("Storage")
    storage = api.federations.storage(federation.id)
    _used(storage)
    st.caption(retention_text(storage.policy))
    if storage.uses:
        st.dataframe(
            [
                {
                    "What": TITLES[use.use],
                    "Files": use.num_blobs,
                    "Size": bytes_text(use.size_bytes),
                }
                for use in storage.uses
            ],
            hide_index=True,
        )
    if session.is_administrator():
        with st.popover("Change the limits", icon=":material/tune:"):
            _form(api, federation, storage.own)


def retention_text(policy: StoragePolicy) -> str:
    """How long what is kept, as a sentence."""
    if policy.retention_days is None:
        return "Ended runs keep everything."
    kept = ""
    if policy.retention_rounds:
        kept = f" except of their last {counted(policy.retention_rounds, 'round')}"
    return (
        f"Runs that ended {policy.retention_days:g} days ago give up what clients received, sent "
        f"and kept,{kept} but never their final state, adapters and measured values."
    )


def _used(storage: FederationStorage) -> None:
    used, quota = storage.used_bytes, storage.policy.quota_bytes
    if quota is None:
        st.markdown(f"{bytes_text(used)} stored; no limit.")
        return
    st.progress(
        min(1.0, used / quota) if quota else 1.0,
        text=f"{bytes_text(used)} of {bytes_text(quota)} stored",
    )
    if used >= quota:
        st.warning(
            "This federation is full: runs do not start, and what clients send has to wait, until "
            "an administrator raises the limit or shortens what is kept.",
            icon=":material/warning:",
        )


def _form(api: ApiClient, federation: FederationDetail, own: StoragePolicyChange) -> None:
    with st.form("storage.limits"):
        st.caption("An empty field follows the settings of the platform.")
        quota = st.number_input(
            "Largest size (MiB)",
            min_value=0.0,
            value=None if own.quota_bytes is None else own.quota_bytes / MEBIBYTE,
        )
        days = st.number_input(
            "Days that ended runs keep everything", min_value=0.0, value=own.retention_days
        )
        rounds = st.number_input(
            "Last rounds of which they keep it for ever",
            min_value=0,
            value=own.retention_rounds,
            step=1,
        )
        if not st.form_submit_button("Save", type="primary"):
            return
    try:
        change = StoragePolicyChange.model_validate(
            {
                "quota_bytes": None if quota is None else round(quota * MEBIBYTE),
                "retention_days": days,
                "retention_rounds": rounds,
            }
        )
    except ValidationError as error:
        show_form_errors(error)
        return
    with session.problems_shown():
        api.federations.change_storage(federation.id, change)
        st.rerun()
