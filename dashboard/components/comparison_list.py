"""A federation's comparisons, and the form that starts another one."""

from collections.abc import Sequence

import streamlit as st

from backend.api_client.client import ApiClient
from backend.api_client.errors import ApiError, UnauthenticatedError
from backend.contracts.comparisons import Comparison, ComparisonCreate
from backend.contracts.federations import FederationDetail
from dashboard import pages, session
from dashboard.components import run_form
from dashboard.components.comparison_form import comparison_form, show_draft
from dashboard.components.formatting import ago_text, counted, escape
from dashboard.components.run_badge import run_badge
from dashboard.components.server_clock import now

ERRORS = "comparison.errors"


def comparisons_section(api: ApiClient, federation: FederationDetail) -> None:
    """All comparisons with a link to each; operators also get the form."""
    comparisons = list(api.comparisons.of_federation(federation.id))
    st.subheader("Comparisons")
    if comparisons:
        _rows(comparisons)
    else:
        st.caption(
            "None yet. A comparison runs several strategies with several seeds and says whether "
            "sharing pays."
        )
    if session.may_operate():
        with st.expander(
            "Compare strategies", icon=":material/compare_arrows:",
            expanded=bool(st.session_state.get(ERRORS)),
        ):  # fmt: skip
            _start(api, federation)


def _rows(comparisons: Sequence[Comparison]) -> None:
    with st.container(border=True, height=300 if len(comparisons) > 5 else "content"):
        for comparison in comparisons:
            left, middle, right = st.columns([3.4, 3, 1.2], vertical_alignment="center")
            left.page_link(
                pages.COMPARISON, label=escape(comparison.name),
                query_params={"id": str(comparison.id)}, icon=":material/compare_arrows:",
            )  # fmt: skip
            with middle, st.container(horizontal=True, vertical_alignment="center"):
                run_badge(comparison.status)
                total = sum(comparison.num_runs.values())
                st.caption(
                    f"{counted(len(comparison.arms), 'arm')}, "
                    f"{counted(len(comparison.seeds), 'seed')}, "
                    f"{comparison.num_ended} of {total} runs ended"
                )
            right.caption(ago_text(comparison.created_at, now()))


def _start(api: ApiClient, federation: FederationDetail) -> None:
    errors: dict[str, str] = st.session_state.get(ERRORS, {})
    draft = comparison_form(api.catalogue.strategies(), federation.clients, errors)
    for path, message in errors.items():
        if not path.startswith("training."):
            st.error(escape(f"{path}: {message}" if path else message))
    show_draft(draft)
    if st.button(
        "Start comparison", type="primary", icon=":material/play_arrow:",
        disabled=draft.request is None or bool(draft.refusals),
    ) and draft.request is not None:  # fmt: skip
        _create_and_start(api, federation, draft.request)


def _create_and_start(
    api: ApiClient, federation: FederationDetail, request: ComparisonCreate
) -> None:
    try:
        made = api.comparisons.create(federation.id, request)
        api.comparisons.start(made.id)
    except UnauthenticatedError:
        raise
    except ApiError as error:
        st.session_state[ERRORS] = {"": str(error)} | run_form.api_errors(error)
        st.rerun()
    st.session_state.pop(ERRORS, None)
    st.switch_page(pages.COMPARISON, query_params={"id": str(made.id)})
