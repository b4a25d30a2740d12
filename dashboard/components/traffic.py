"""How much of the traffic quotas of a client or a federation is used."""

import streamlit as st

from backend.contracts.quotas import QuotaName, QuotaUse
from dashboard import session
from dashboard.components.formatting import bytes_text, moment_text


def traffic_quotas(uses: list[QuotaUse]) -> None:
    """One tile for each quota; nothing where the platform counts nothing."""
    if not uses:
        return
    st.subheader("Traffic")
    for tile, use in zip(st.columns(len(uses)), uses, strict=True):
        tile.metric(_label(use), _amount(use, use.used), border=True, help=_help(use))


def _label(use: QuotaUse) -> str:
    of_what = "Requests this hour" if use.name is QuotaName.REQUESTS_PER_HOUR else "Bytes today"
    return of_what if use.allowed is None else f"{of_what} of {_amount(use, use.allowed)}"


def _amount(use: QuotaUse, number: int) -> str:
    return f"{number:,}" if use.name is QuotaName.REQUESTS_PER_HOUR else bytes_text(number)


def _help(use: QuotaUse) -> str:
    if use.resets_at is None:
        return "Nothing was counted since the last window ended"
    return f"Counted anew from {moment_text(use.resets_at, session.viewer_zone())} on"
