"""One client: what is known of it, and its credential."""

import streamlit as st

from backend.api_client.client import ApiClient
from backend.contracts.clients import Client
from dashboard import pages, session
from dashboard.components.address import id_in_address
from dashboard.components.client_credential import credential_section
from dashboard.components.formatting import escape, moment_text
from dashboard.components.labels import (
    EXECUTION_WORDS,
    TASK_WORDS,
    dataset_text,
    split_text,
)
from dashboard.components.signatures import signing_keys_section
from dashboard.components.traffic import traffic_quotas


def main() -> None:
    """Show the client that the address names."""
    client_id = id_in_address("client", pages.CLIENTS, "All clients")
    api = session.current_api()
    client = api.clients.get(client_id)
    st.page_link(pages.CLIENTS, label="All clients", icon=":material/arrow_back:")
    st.title(escape(client.name))
    _facts(client)
    if client.is_pending:
        _approval(api, client)
    signing_keys_section(api, client)
    if session.may_operate():
        traffic_quotas(api.clients.usage(client.id))
    if session.may_operate():
        credential_section(api, client)


def _approval(api: ApiClient, client: Client) -> None:
    st.warning(
        "This client waits for approval and takes part in nothing until then.",
        icon=":material/hourglass_empty:",
    )
    if session.may_operate() and st.button("Approve", type="primary", icon=":material/check:"):
        with session.problems_shown():
            api.clients.approve(client.id)
            st.rerun()


def _facts(client: Client) -> None:
    zone, shape = session.viewer_zone(), client.architecture
    seen = "never" if client.last_seen_at is None else moment_text(client.last_seen_at, zone)
    rows = {
        "Trains": EXECUTION_WORDS[client.execution],
        "Base model": f"{client.base_model.id} ({shape.family}, {client.base_model.source})",
        "Layers × width": f"{shape.num_layers} × {shape.hidden_size}",
        "LoRA rank, alpha": f"{client.lora_rank}, {client.lora_alpha:g}",
        "Task": TASK_WORDS[client.task],
        "Data": "on its own premises"
        if client.num_examples is not None
        else dataset_text(client.dataset),
        "Rows": f"{client.num_examples:,} for training"
        if client.num_examples is not None
        else split_text(client.dataset) + " (training / validation / test)",
        "Joined": moment_text(client.created_at, zone),
        "Last seen": seen,
        "Id": str(client.id),
    }
    st.table({name: escape(text) for name, text in rows.items()}, border="horizontal")


main()
