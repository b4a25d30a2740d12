"""Who changed what; for administrators."""

import json
from datetime import date, datetime, time, timedelta
from typing import get_args

import pandas as pd
import streamlit as st
from pydantic import ValidationError

from backend.contracts.audit import ActorKind, AuditEntry, AuditFilter
from dashboard import session
from dashboard.components.form_errors import show_form_errors
from dashboard.components.formatting import NOTHING, moment_text

SHOWN = 200
KINDS: list[str] = list(get_args(ActorKind))


def main() -> None:
    """Show filters, the newest entries that fulfil them, and all of them as a file."""
    st.title("Audit trail")
    st.caption("Every change by people, clients and the platform. Entries are never altered.")
    try:
        wanted = _filters()
    except ValidationError as error:
        show_form_errors(error)
        return
    api = session.current_api()
    page = api.audit.page(wanted, SHOWN)
    if not page.items:
        st.caption("No entry fulfils these conditions.")
        return
    st.dataframe(pd.DataFrame([_row(entry) for entry in page.items]), hide_index=True)
    if page.next_cursor is not None:
        st.caption(f"These are the newest {SHOWN}. Narrow the filters, or take the file.")
    st.download_button(
        "All of them as CSV",
        data=lambda: api.audit.csv(wanted),
        file_name="fedbraid-audit.csv",
        mime="text/csv",
        icon=":material/download:",
        on_click="ignore",
    )


def _filters() -> AuditFilter:
    """What was chosen.

    Raises:
        ValidationError: an action or an object that cannot be one.
    """
    first = st.columns(3)
    actor_name = first[0].text_input("Who", help="the exact name", max_chars=100)
    kind = first[1].selectbox("Kind", KINDS, index=None, placeholder="any")
    action = first[2].text_input("Action", help="such as `run.start`, or `run` for all of runs")
    second = st.columns(3)
    object_id = second[0].text_input("Object", help="its id")
    since = second[1].date_input("From", value=None)
    until = second[2].date_input("To", value=None, help="this day included")
    return AuditFilter.model_validate(
        {
            "actor_name": actor_name.strip() or None,
            "actor_kind": kind,
            "action": action.strip() or None,
            "object_id": object_id.strip() or None,
            "since": _start_of(since) if since else None,
            "until": _start_of(until + timedelta(days=1)) if until else None,
        }
    )


def _start_of(day: date) -> datetime:
    return datetime.combine(day, time(), session.viewer_zone())


def _row(entry: AuditEntry) -> dict[str, str]:
    return {
        "When": moment_text(entry.created_at, session.viewer_zone()),
        "Who": f"{entry.actor_name} ({entry.actor_kind})",
        "Action": entry.action,
        "Object": str(entry.object_id or NOTHING),
        "What": json.dumps(entry.data, sort_keys=True) if entry.data else NOTHING,
        "From": entry.address or NOTHING,
    }


main()
