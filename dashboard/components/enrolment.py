"""Enrolment keys: make, hand over, revoke."""

import json

import pandas as pd
import streamlit as st
from pydantic import ValidationError

from backend.api_client.client import ApiClient
from backend.api_client.errors import ApiError, UnauthenticatedError
from backend.contracts.clients import EnrolmentKey, EnrolmentKeyCreate, EnrolmentKeyCreated
from dashboard import session
from dashboard.components.formatting import escape, moment_text
from dashboard.components.server_clock import now
from dashboard.options import api_url

FRESH = "enrolment.fresh"  # a key whose secret is on the screen


def enrolment_keys(api: ApiClient) -> None:
    """Show the form, a fresh key's secret, and all keys."""
    st.markdown("A participant registers itself with an enrolment key. Hand it over privately.")
    with st.form("enrolment", border=True):
        left, middle, right = st.columns([2, 1, 1])
        label = left.text_input("Label", placeholder="autumn pilot", max_chars=100)
        max_uses = middle.number_input("Registrations", 1, 10_000, 1, help="How often it works")
        hours = right.number_input("Valid for (hours)", 1.0, 24.0 * 365, 24.0, format="%g")
        federation = st.selectbox(
            "Federation to join", list(api.federations.list()), index=None,
            format_func=lambda federation: federation.name, placeholder="none yet",
        )  # fmt: skip
        requires_approval = st.checkbox("Clients wait until an operator approves each of them")
        sent = st.form_submit_button("Make key", type="primary", icon=":material/key:")
    if sent:
        _make(
            api,
            {
                "label": label,
                "max_uses": max_uses,
                "expires_in_hours": hours,
                "federation_id": federation.id if federation is not None else None,
                "requires_approval": requires_approval,
            },
        )
    fresh: EnrolmentKeyCreated | None = st.session_state.get(FRESH)
    if fresh is not None:
        _secret(fresh)
    _list(api)


def state_of(key: EnrolmentKey) -> str:
    """Whether a key still opens the door, in one word."""
    if key.revoked_at is not None:
        return "revoked"
    if key.expires_at <= now():
        return "expired"
    return "used up" if key.num_uses >= key.max_uses else "valid"


def registration_call(base_url: str, secret: str) -> str:
    """A `curl` call that registers an example client; ready to paste into a POSIX shell."""
    body = {
        "enrolment_key": secret,
        "name": "north-clinic",
        "base_model": {"source": "builtin", "id": "tiny_llama"},
        "lora_rank": 8,
        "task": "fill_in",
        "dataset": {"source": "builtin", "task": "arithmetic_fill_in", "num_train": 64},
    }
    text = json.dumps(body, indent=2).replace("'", "'\\''")
    return (
        f"curl -sS -X POST {base_url}/api/v1/clients/register \\\n"
        f"  -H 'Content-Type: application/json' \\\n  -d '{text}'"
    )


def _make(api: ApiClient, values: dict[str, object]) -> None:
    try:
        request = EnrolmentKeyCreate.model_validate(values)
    except ValidationError:
        st.error("Give the key a label, so that you can tell it from others later.")
        return
    try:
        st.session_state[FRESH] = api.enrolment_keys.create(request)
    except UnauthenticatedError:
        raise
    except ApiError as error:
        st.error(escape(str(error)))


def _secret(fresh: EnrolmentKeyCreated) -> None:
    with st.container(border=True):
        st.warning(
            f"The secret of **{escape(fresh.key.label)}** is shown now and never again. Copy it.",
            icon=":material/key:",
        )
        st.code(fresh.secret, language=None)
        st.caption("A participant registers like this (change name, model, rank and task):")
        st.code(registration_call(api_url(), fresh.secret), language="bash")
        if st.button("I have copied it", icon=":material/check:"):
            del st.session_state[FRESH]
            st.rerun()


def _list(api: ApiClient) -> None:
    keys = list(api.enrolment_keys.list())
    if not keys:
        st.caption("No key yet.")
        return
    zone = session.viewer_zone()
    st.dataframe(
        pd.DataFrame(
            [
                {
                    "Label": key.label,
                    "State": state_of(key),
                    "Registrations": f"{key.num_uses} of {key.max_uses}",
                    "Expires": moment_text(key.expires_at, zone),
                    "Made": moment_text(key.created_at, zone),
                }
                for key in keys
            ]
        ),
        hide_index=True,
    )
    valid = [key for key in keys if state_of(key) == "valid"]
    if not valid:
        return
    with st.container(horizontal=True, vertical_alignment="bottom"):
        chosen = st.selectbox(
            "Revoke a key", valid, index=None, format_func=lambda key: key.label,
            placeholder="Choose a valid key", key="enrolment.revoke", width=320,
            help="Clients that registered with it stay.",
        )  # fmt: skip
        if st.button("Revoke", disabled=chosen is None) and chosen is not None:
            api.enrolment_keys.revoke(chosen.id)
            st.rerun()
