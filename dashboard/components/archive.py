"""A federation as one file: out of its page, and in on the page of all federations."""

import streamlit as st

from backend.api_client.client import ApiClient
from backend.contracts.archives import ARCHIVE_MEDIA_TYPE, ImportedFederation
from backend.contracts.federations import FederationDetail
from dashboard import pages, session
from dashboard.components.formatting import bytes_text, counted, escape

MAX_BYTES = 256 * 2**20  # the dashboard holds a download in memory; more goes by command
IMPORTED = "archive.imported"


def export_section(api: ApiClient, federation: FederationDetail) -> None:
    """Let administrators download everything of a federation."""
    if not session.is_administrator():
        return
    st.subheader("Export")
    st.caption(
        "Everything as one file, to keep or to import elsewhere: clients with uploaded data, runs, "
        "results, adapters. Users, credentials and keys stay here. Keep it as safe as the platform."
    )
    size_bytes = api.federations.storage(federation.id).used_bytes
    if size_bytes > MAX_BYTES:
        st.info(
            f"{bytes_text(size_bytes)} are too much for a browser. On the machine of the platform:",
            icon=":material/terminal:",
        )
        st.code(f"fedbraid export-federation {federation.id} --to federation.zip", language="sh")
        return
    st.download_button(
        f"Export ({bytes_text(size_bytes)} and its rows)",
        data=lambda: b"".join(api.federations.stream_archive(federation.id)),
        file_name=f"{federation.name}.zip",
        mime=ARCHIVE_MEDIA_TYPE,
        icon=":material/archive:",
        on_click="ignore",
        key="federation.export",
    )


def import_section(api: ApiClient) -> None:
    """Let administrators make a federation of an archive."""
    if not session.is_administrator():
        return
    made: ImportedFederation | None = st.session_state.pop(IMPORTED, None)
    if made is not None:
        _tell(made)
    with st.expander("Import a federation", icon=":material/unarchive:"):
        st.caption(
            "A file that the Export button or `fedbraid export-federation` made. It is checked "
            "whole before anything is added."
        )
        with st.form("archive.import", clear_on_submit=True):
            file = st.file_uploader("Archive", type="zip")
            if not st.form_submit_button("Import", type="primary"):
                return
        if file is None:
            st.error("Choose the archive first.")
            return
        with session.problems_shown():
            st.session_state[IMPORTED] = api.federations.import_archive(file)
            st.rerun()


def _tell(made: ImportedFederation) -> None:
    copied = (
        "Something of it was here already, so it is a copy: its runs can be looked at and cloned, "
        "but not resumed. "
        if made.is_copy
        else ""
    )
    st.success(
        f"{escape(made.name)} is here, with {counted(made.num_clients, 'client')} and "
        f"{counted(made.num_runs, 'run')}. {copied}Give each client a new credential on its page.",
        icon=":material/check_circle:",
    )
    st.page_link(pages.FEDERATION, label="Open it", query_params={"id": str(made.federation_id)})
