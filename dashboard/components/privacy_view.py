"""What a run has spent of its clients' privacy."""

import streamlit as st

from backend.contracts.metrics import MetricName
from dashboard.components.formatting import NOTHING, epsilon_text
from dashboard.components.live_history import LiveHistory, newest

UNIT = (
    "Unit: one client's whole data set. Each client clips and noises its own change, so the "
    "promise holds against everybody who sees what it sends. Other runs on the same data add to it."
)


def privacy_section(history: LiveHistory) -> None:
    """Epsilon so far and at the end; nothing for a run without differential privacy."""
    settings = history.run.privacy.differential_privacy
    if settings is None:
        return
    st.subheader("Privacy")
    spent = newest(history.per_round(MetricName.EPSILON)).values()
    tiles = st.columns(4)
    tiles[0].metric(
        "Epsilon so far",
        epsilon_text(max(spent)) if spent else NOTHING,
        border=True,
        help="Privacy loss of the client that has sent most, after its newest round",
    )
    tiles[1].metric(
        "Epsilon at the end",
        epsilon_text(settings.epsilon_after(history.run.num_rounds)),
        border=True,
        help=f"After all {history.run.num_rounds} rounds",
    )
    tiles[2].metric("Delta", f"{settings.delta:g}", border=True)
    tiles[3].metric(
        "Noise",
        f"{settings.noise_multiplier * settings.clip_norm:g}",
        border=True,
        help=f"Standard deviation on every shared value: noise multiplier "
        f"{settings.noise_multiplier:g} times clipping norm {settings.clip_norm:g}",
    )
    st.caption(UNIT)
    if not settings.publish_measurements:
        st.info(
            "Accuracies and losses stay with the clients, because they tell about data too. The "
            "sections on accuracy and training below stay empty in this run.",
            icon=":material/visibility_off:",
        )
