"""What a run has spent of its clients' privacy, and how far its secure sums are."""

import streamlit as st

from backend.contracts.enums import RoundStatus, SecureStep
from backend.contracts.metrics import MetricName
from backend.contracts.privacy import DifferentialPrivacy
from dashboard.components.formatting import NOTHING, epsilon_text, escape
from dashboard.components.live_history import LiveHistory, newest

UNIT = (
    "Unit: one client's whole data set. Each client clips and noises its own change, so the "
    "promise holds against everybody who sees what it sends. Other runs on the same data add to it."
)


SECURE = (
    "Secure aggregation: the platform opens the sum of each round's updates and no single one. So "
    "what compares or measures single updates does not exist in this run: norms of a client's "
    "change, contributions, and how much updates agree. Accuracies and losses are what the clients "
    "themselves report."
)
STEPS = {
    SecureStep.KEYS: "1 of 4 (public keys)",
    SecureStep.SHARES: "2 of 4 (encrypted shares)",
    SecureStep.INPUTS: "3 of 4 (training, then masked updates)",
    SecureStep.UNMASKING: "4 of 4 (opening the sum)",
}


def privacy_section(history: LiveHistory) -> None:
    """Epsilon so far and at the end, and the present exchange; nothing without protection."""
    privacy = history.run.privacy
    if privacy.differential_privacy is None and privacy.secure_aggregation is None:
        return
    st.subheader("Privacy")
    if privacy.secure_aggregation is not None:
        _secure_part(history)
    if privacy.differential_privacy is not None:
        _noise_part(history, privacy.differential_privacy)


def _secure_part(history: LiveHistory) -> None:
    st.info(SECURE, icon=":material/lock:")
    newest_round = history.current_round
    secure = None if newest_round is None else newest_round.secure
    if newest_round is None or secure is None or newest_round.status is not RoundStatus.OPEN:
        return
    st.progress(
        min(1.0, secure.num_done / max(1, secure.num_expected)),
        text=escape(
            f"Round {newest_round.round_number}, step {STEPS[secure.step]}: {secure.num_done} of "
            f"{secure.num_expected} clients"
        ),
    )
    if secure.waiting_for:
        st.caption(escape(f"Waiting for {', '.join(secure.waiting_for)}"))


def _noise_part(history: LiveHistory, settings: DifferentialPrivacy) -> None:
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
