"""A run's status as a coloured word."""

import streamlit as st

from backend.contracts.enums import RunStatus
from dashboard.components.labels import RUN_BADGES


def run_badge(status: RunStatus) -> None:
    """Show the status; the same colour and mark everywhere."""
    colour, icon = RUN_BADGES[status]
    st.badge(status.value, color=colour, icon=icon)
