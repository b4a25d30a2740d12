"""All federations, with where their newest run stands."""

from itertools import islice

import streamlit as st

from backend.contracts.federations import Federation
from backend.contracts.runs import Run
from dashboard import pages, session
from dashboard.components.archive import import_section
from dashboard.components.formatting import ago_text, escape, moment_text
from dashboard.components.labels import round_text, run_title
from dashboard.components.run_badge import run_badge
from dashboard.components.server_clock import now

SHOWN = 20


def main() -> None:
    """Show the list, or what to do first."""
    title, action = st.columns([4, 1], vertical_alignment="bottom")
    title.title("Federations")
    if session.may_operate() and action.button(
        "New federation", type="primary", icon=":material/add:", width="stretch"
    ):
        st.switch_page(pages.NEW_FEDERATION)
    api = session.current_api()
    limit = st.session_state.get("federations.limit", SHOWN)
    federations = list(islice(api.federations.list(), limit + 1))
    if not federations:
        _empty()
        import_section(api)
        return
    for federation in federations[:limit]:
        _card(federation, next(api.federations.runs(federation.id), None))
    if len(federations) > limit and st.button("Show more", icon=":material/expand_more:"):
        st.session_state["federations.limit"] = limit + SHOWN
        st.rerun()
    import_section(api)


def _empty() -> None:
    with st.container(border=True):
        st.subheader("No federation yet")
        st.markdown(
            "1. On **Clients**, make an enrolment key and register the participants, "
            "or add built-in ones to try things out.\n"
            "2. On **New federation**, choose who works together and start a run."
        )
        with st.container(horizontal=True):
            if st.button("Go to clients", icon=":material/devices:"):
                st.switch_page(pages.CLIENTS)
            if st.button("New federation", icon=":material/add:", key="empty.new"):
                st.switch_page(pages.NEW_FEDERATION)


def _card(federation: Federation, newest: Run | None) -> None:
    with st.container(border=True):
        left, middle, right = st.columns([3, 4, 1.4], vertical_alignment="center")
        with left:
            st.markdown(f"**{escape(federation.name)}**")
            st.caption(
                f"{_count(federation.num_clients, 'client')} · global rank "
                f"{federation.global_rank} · {_count(federation.num_runs, 'run')}",
                help=f"Created {moment_text(federation.created_at, session.viewer_zone())}",
            )
        with middle:
            if newest is None:
                st.caption("No run yet. Open the federation to start one.")
            else:
                with st.container(horizontal=True, vertical_alignment="center"):
                    run_badge(newest.status)
                    st.markdown(round_text(newest), width="content")
                st.caption(
                    f"Newest run: {run_title(newest)} · created "
                    f"{ago_text(newest.created_at, now())}"
                )
        right.page_link(
            pages.FEDERATION,
            label="Open federation",
            icon=":material/hub:",
            query_params={"id": str(federation.id)},
        )
        if newest is not None:
            right.page_link(
                pages.RUN,
                label="Newest run",
                icon=":material/monitoring:",
                query_params={"id": str(newest.id)},
            )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


main()
