"""One comparison, live: what its arms have reached so far, and what may be said of it."""

from uuid import UUID

import streamlit as st

from backend.api_client.client import ApiClient
from backend.api_client.errors import ApiError, UnauthenticatedError
from backend.contracts.comparisons import Arm, Comparison
from backend.contracts.enums import RunStatus
from dashboard import pages, session
from dashboard.components import comparison_view
from dashboard.components.address import id_in_address
from dashboard.components.formatting import counted, escape, moment_text

REFRESH_SECONDS = 3.0


def main() -> None:
    """Show the comparison that the address names."""
    comparison_id = id_in_address("comparison", pages.FEDERATIONS, "All federations")
    api = session.current_api()
    results = api.comparisons.results(comparison_id)
    _title(api, results.comparison)
    _controls(api, results.comparison)
    live = results.comparison.status in {RunStatus.QUEUED, RunStatus.RUNNING}
    st.fragment(_live, run_every=REFRESH_SECONDS if live else None)(comparison_id, live)
    comparison_view.open_run(results)


def _title(api: ApiClient, comparison: Comparison) -> None:
    federation = api.federations.get(comparison.federation_id)
    st.page_link(
        pages.FEDERATION,
        label=escape(federation.name),
        icon=":material/arrow_back:",
        query_params={"id": str(federation.id)},
    )
    st.title(escape(comparison.name))
    seeds = ", ".join(map(str, comparison.seeds))
    st.caption(
        f"{counted(len(comparison.arms), 'arm')} · "
        f"{'seed' if len(comparison.seeds) == 1 else 'seeds'} {seeds} · "
        f"{counted(comparison.num_rounds, 'round')} · "
        f"{counted(len(federation.clients), 'client')} · "
        f"created {moment_text(comparison.created_at, session.viewer_zone())}"
    )


def _controls(api: ApiClient, comparison: Comparison) -> None:
    """Settings, downloads, start and cancel; outside of what refreshes."""
    with st.container(horizontal=True):
        with st.popover("Settings", icon=":material/tune:"):
            for arm in comparison.arms:
                st.markdown(f"**{escape(arm.title)}**")
                st.json(_settings(arm), expanded=False)
            st.markdown("**Local training**")
            st.json(comparison.training.model_dump(mode="json"), expanded=False)
        comparison_view.downloads(api, comparison)
        if not session.may_operate():
            return
        if comparison.status is RunStatus.CREATED and st.button(
            "Start", type="primary", icon=":material/play_arrow:"
        ):
            api.comparisons.start(comparison.id)
            st.rerun()
        if not comparison.status.is_terminal:
            with st.popover("Cancel comparison", icon=":material/stop_circle:"):
                st.markdown("Stop all runs that have not ended? What others have found stays.")
                if st.button("Yes, cancel it", type="primary", key="comparison.cancel"):
                    _cancel(api, comparison)


def _settings(arm: Arm) -> dict[str, object]:
    """Everything in which an arm may differ from the others."""
    values: dict[str, object] = arm.strategy.model_dump(mode="json")
    values |= arm.training.model_dump(mode="json", exclude_none=True)
    if arm.privacy.differential_privacy is not None:
        values["differential_privacy"] = arm.privacy.differential_privacy.model_dump(mode="json")
    if not arm.robustness.is_off:
        values["robustness"] = arm.robustness.model_dump(mode="json", exclude_none=True)
    return values


def _cancel(api: ApiClient, comparison: Comparison) -> None:
    try:
        api.comparisons.cancel(comparison.id)
    except UnauthenticatedError:
        raise
    except ApiError as error:
        st.error(escape(str(error)))
    else:
        st.rerun()


def _live(comparison_id: UUID, refreshing: bool) -> None:
    """The part of the page that refreshes."""
    with session.problems_shown():
        results = session.current_api().comparisons.results(comparison_id)
        if refreshing and results.comparison.status.is_terminal:
            st.rerun()  # the whole page once more: without polling and without the cancel button
        comparison_view.header(results.comparison)
        comparison_view.verdicts(results)
        comparison_view.table(results)
        comparison_view.cost_section(results)
        comparison_view.runs(results)


main()
