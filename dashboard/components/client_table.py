"""Clients as a table."""

from collections.abc import Sequence

import pandas as pd
import streamlit as st

from backend.contracts.clients import Client
from backend.contracts.enums import Execution
from dashboard.components.formatting import ago_text
from dashboard.components.labels import TASK_WORDS, dataset_text, split_text
from dashboard.components.server_clock import now

_COLUMNS = {
    "Model": st.column_config.TextColumn(help="Base model and its family"),
    "Layers × width": st.column_config.TextColumn(help="Number of layers and hidden size"),
    "Rank": st.column_config.NumberColumn(help="LoRA rank r", format="%d"),
    "Rows": st.column_config.TextColumn(help="Training / validation / test rows"),
    "Trains": st.column_config.TextColumn(
        help="managed: a worker of the platform trains. remote: the client's own agent trains."
    ),
    "Last seen": st.column_config.TextColumn(help="Last sign of life of the client"),
}


def client_table(clients: Sequence[Client]) -> None:
    """Show clients, in the given order."""
    moment = now()
    st.dataframe(
        pd.DataFrame(
            [
                {
                    "Client": client.name + (" (waits for approval)" if client.is_pending else ""),
                    "Model": f"{client.base_model.id} ({client.architecture.family})",
                    "Layers × width": f"{client.architecture.num_layers} × "
                    f"{client.architecture.hidden_size}",
                    "Rank": client.lora_rank,
                    "Task": TASK_WORDS[client.task],
                    "Data": _data_text(client),
                    "Rows": _rows_text(client),
                    "Trains": client.execution.value,
                    "Last seen": ago_text(client.last_seen_at, moment),
                }
                for client in clients
            ]
        ),
        hide_index=True,
        column_config=_COLUMNS,
    )


def _data_text(client: Client) -> str:
    if client.execution is Execution.REMOTE:
        return "on its own premises"
    return dataset_text(client.dataset)


def _rows_text(client: Client) -> str:
    if client.num_examples is not None:
        return f"{client.num_examples:,} / – / –"
    return split_text(client.dataset)
