"""The probe texts of a federation: which ones it has, and an upload of its own."""

import streamlit as st

from backend.api_client.client import ApiClient
from backend.contracts.federations import FederationDetail
from backend.contracts.probe_sets import (
    JSON_LINES,
    MAX_CHARACTERS,
    MAX_TEXTS,
    MIN_TEXTS,
    PLAIN_TEXT,
    ProbeSet,
    ProbeSource,
)
from dashboard import session
from dashboard.components.formatting import bytes_text, counted, escape, moment_text

HASH_DIGITS = 12
_PURPOSE = (
    "Public sentences that every client's model reads before it trains with the gauge `probe` of "
    "H2Tune or Co-LoRA, so that what the clients share means the same in each model. All clients "
    "receive them: they must not be confidential."
)
_FORMAT = (
    f"{MIN_TEXTS} to {MAX_TEXTS:,} different texts of at most {MAX_CHARACTERS} characters: a .txt "
    'file with one on each line, or a .jsonl file with `{"text": "..."}` on each line. Best are '
    "400 to 1,000 unlabelled sentences like those of the task. Runs that exist keep their texts."
)


def probe_set_section(api: ApiClient, federation: FederationDetail) -> None:
    """Show the texts; operators upload others or go back to the built-in ones."""
    st.subheader("Probe set")
    st.caption(_PURPOSE)
    found = api.federations.probe_set(federation.id)
    is_own = found.source is ProbeSource.UPLOADED
    st.markdown(_described(found))
    if is_own:
        st.dataframe([{"The first texts": text} for text in found.examples], hide_index=True)
    with st.container(horizontal=True):
        if is_own:
            st.download_button(
                "Download the texts",
                data=lambda: api.federations.download_probe_set(federation.id),
                file_name=f"{federation.name}-probe-set.jsonl",
                mime=JSON_LINES,
                icon=":material/download:",
                on_click="ignore",
                key="probe_set.download",
            )
        if session.may_operate():
            with st.popover("Upload texts", icon=":material/upload:"):
                _upload(api, federation)
            if is_own:
                with st.popover("Use the built-in texts", icon=":material/undo:"):
                    _go_back(api, federation)


def run_probe_text(sha256: str | None) -> str:
    """With which probe texts a run was made."""
    return "The built-in texts" if sha256 is None else f"SHA-256 `{sha256[:HASH_DIGITS]}`…"


def _described(found: ProbeSet) -> str:
    if found.sha256 is None or found.size_bytes is None:
        return f"{counted(found.num_texts, 'built-in text')}, made for the tasks of the members."
    by = "" if found.uploaded_by is None else f" by {escape(found.uploaded_by)}"
    return (
        f"{counted(found.num_texts, 'text')} ({bytes_text(found.size_bytes)}), uploaded{by} on "
        f"{moment_text(found.uploaded_at, session.viewer_zone())}; {run_probe_text(found.sha256)}"
    )


def _upload(api: ApiClient, federation: FederationDetail) -> None:
    with st.form("probe_set.upload", clear_on_submit=True, border=False):
        st.caption(_FORMAT)
        file = st.file_uploader("Texts", type=["txt", "jsonl", "ndjson"])
        if not st.form_submit_button("Upload", type="primary"):
            return
    if file is None:
        st.error("Choose the file first.")
        return
    media_type = PLAIN_TEXT if file.name.lower().endswith(".txt") else JSON_LINES
    with session.problems_shown():
        api.federations.upload_probe_set(federation.id, file, media_type)
        st.rerun()


def _go_back(api: ApiClient, federation: FederationDetail) -> None:
    st.markdown("New runs get the built-in texts; runs that exist keep theirs.")
    if st.button("Yes, use them", type="primary", key="probe_set.remove"):
        with session.problems_shown():
            api.federations.remove_probe_set(federation.id)
            st.rerun()
