"""Who does not take part in a run, and refusing or taking part again for a client."""

from collections.abc import Callable

import streamlit as st

from backend.api_client.client import ApiClient
from backend.api_client.errors import ApiError, UnauthenticatedError
from backend.contracts.clients import Client
from backend.contracts.enums import RunStatus
from backend.contracts.federations import FederationDetail
from backend.contracts.refusals import Refusal
from backend.contracts.runs import Run
from dashboard.components.formatting import escape

MAX_REASON = 500
_REFUSABLE = {RunStatus.CREATED, RunStatus.QUEUED, RunStatus.RUNNING, RunStatus.PAUSED}
_WITHDRAWABLE = {RunStatus.CREATED, RunStatus.QUEUED, RunStatus.PAUSED, RunStatus.FAILED}


def refusal_notes(refusals: list[Refusal]) -> None:
    """One line for each client that stays out, with its reason."""
    for refusal in refusals:
        st.warning(
            f"**{escape(refusal.client_name)}** does not take part: {escape(refusal.reason)} "
            f"(refused by {escape(refusal.refused_by)})",
            icon=":material/person_off:",
        )


def refusal_control(api: ApiClient, run: Run, federation: FederationDetail) -> None:
    """Refuses the run for a client, or withdraws that; nothing where neither is possible."""
    standing = {refusal.client_id: refusal for refusal in api.runs.refusals(run.id)}
    if run.status in _WITHDRAWABLE:
        for refusal in standing.values():
            _withdraw(api, refusal)
    taking_part = [client for client in federation.clients if client.id not in standing]
    if run.status in _REFUSABLE and taking_part:
        with st.popover("Refuse for a client", icon=":material/person_off:"):
            _refuse(api, run, taking_part)


def _refuse(api: ApiClient, run: Run, clients: list[Client]) -> None:
    st.markdown(
        "The client takes no part in this run from now on; what it handed in before counts. Where "
        "the run needs every client, it stops. Other runs are not concerned."
    )
    client = st.selectbox(
        "Client", clients, format_func=lambda client: client.name, key="refusal.client"
    )
    reason = st.text_input("Reason", max_chars=MAX_REASON, key="refusal.reason")
    if st.button("Refuse", type="primary", key="refusal.send", disabled=not reason.strip()):
        _call(lambda: api.clients.refuse(client.id, run.id, reason))


def _withdraw(api: ApiClient, refusal: Refusal) -> None:
    if st.button(
        f"Let {escape(refusal.client_name)} take part",
        icon=":material/person_add:",
        key=f"refusal.withdraw.{refusal.id}",
    ):
        _call(lambda: api.clients.withdraw_refusal(refusal.client_id, refusal.id))


def _call(change: Callable[[], object]) -> None:
    try:
        change()
    except UnauthenticatedError:
        raise
    except ApiError as error:
        st.error(escape(str(error)))
    else:
        st.rerun()
