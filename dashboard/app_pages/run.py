"""One run, live: polls for what is new, keeps what it has seen, stops when nothing changes."""

from collections.abc import Callable
from uuid import UUID

import streamlit as st

from backend.api_client.client import ApiClient
from backend.api_client.errors import ApiError, UnauthenticatedError
from backend.contracts.enums import RunStatus, StrategyName
from backend.contracts.federations import FederationDetail
from backend.contracts.runs import Run
from backend.contracts.strategies import title_of
from dashboard import pages, session
from dashboard.components import run_view
from dashboard.components.address import id_in_address
from dashboard.components.baseline_view import baseline_section
from dashboard.components.charts import client_styles
from dashboard.components.compatibility import group_texts
from dashboard.components.contributions import contributions_section
from dashboard.components.delivered import baseline_of, reached
from dashboard.components.formatting import counted, escape, moment_text
from dashboard.components.live_history import LiveHistory
from dashboard.components.measured import measured_section
from dashboard.components.mixing import mixing_section
from dashboard.components.privacy_view import privacy_section
from dashboard.components.probe_set import run_probe_text
from dashboard.components.refusals import refusal_control, refusal_notes
from dashboard.components.run_past import may_resume, past_text

HISTORY = "run.history"
REFRESH_SECONDS = 2.0


def main() -> None:
    """Show the run that the address names."""
    run_id = id_in_address("run", pages.FEDERATIONS, "All federations")
    api = session.current_api()
    history = _history(api, run_id)
    federation = api.federations.get(history.run.federation_id)
    _title(history, federation)
    _controls(api, history, federation)
    baseline = baseline_of(api, history.run)
    live = _is_live(history.run, baseline)
    st.fragment(_live, run_every=REFRESH_SECONDS if live else None)(run_id, federation, live)


def _history(api: ApiClient, run_id: UUID) -> LiveHistory:
    """What this tab knows of the run; only one run is kept at a time."""
    known: LiveHistory | None = st.session_state.get(HISTORY)
    if known is None or known.run.id != run_id:
        known = LiveHistory(api.runs.get(run_id))
        st.session_state[HISTORY] = known
    return known


def _title(history: LiveHistory, federation: FederationDetail) -> None:
    run = history.run
    st.page_link(
        pages.FEDERATION,
        label=escape(federation.name),
        icon=":material/arrow_back:",
        query_params={"id": str(federation.id)},
    )
    if run.comparison_id is not None:
        st.page_link(
            pages.COMPARISON,
            label="The comparison to which this run belongs",
            icon=":material/compare_arrows:",
            query_params={"id": str(run.comparison_id)},
        )
    st.title(title_of(run.strategy))
    st.caption(
        f"Seed {run.seed} · {counted(run.num_rounds, 'round')} · "
        f"{counted(len(federation.clients), 'client')} · global rank {federation.global_rank} · "
        f"created {moment_text(run.created_at, session.viewer_zone())}"
    )
    past = past_text(run)
    if past:
        st.caption(past)
    groups = group_texts(run.strategy, federation.clients)
    if groups:
        st.caption(f"Groups: {escape(' · '.join(groups))}")


def _controls(api: ApiClient, history: LiveHistory, federation: FederationDetail) -> None:
    """Settings, start and cancel; outside of what refreshes, so that nothing closes by itself."""
    run = history.run
    with st.container(horizontal=True):
        with st.popover("Settings", icon=":material/tune:"):
            st.markdown("**Strategy**")
            st.json(run.strategy.model_dump(mode="json"))
            st.markdown("**Local training**")
            st.json(run.training.model_dump(mode="json"))
            st.markdown("**Probe set**")
            st.markdown(run_probe_text(run.probe_set_sha256))
            st.markdown("**Privacy**")
            st.json(run.privacy.model_dump(mode="json"))
            st.markdown("**Hostile clients**")
            st.json(run.robustness.model_dump(mode="json", exclude_none=True))
            st.markdown("**Rounds**")
            st.json(run.round_policy.model_dump(mode="json", exclude_none=True))
            if run.stop_when is not None:
                st.json({"stop_when": run.stop_when.model_dump(mode="json", exclude_none=True)})
        if not session.may_operate():
            return
        if run.status is RunStatus.CREATED and st.button(
            "Start", type="primary", icon=":material/play_arrow:"
        ):
            history.run = api.runs.start(run.id)
            st.rerun()
        _pause_and_resume(api, history)
        refusal_control(api, run, federation)
        if not run.status.is_terminal:
            with st.popover("Cancel run", icon=":material/stop_circle:"):
                st.markdown("Stop this run for good? A cancelled run cannot be continued.")
                if st.button("Yes, cancel it", type="primary", key="run.cancel"):
                    _change(history, api.runs.cancel)


def _pause_and_resume(api: ApiClient, history: LiveHistory) -> None:
    run = history.run
    if run.status is RunStatus.RUNNING and run.comparison_id is None:
        if st.button(
            "Pause",
            icon=":material/pause:",
            help="Clients at work finish, and their work counts; nothing else begins.",
        ):
            _change(history, api.runs.pause)
    elif (
        run.status in {RunStatus.PAUSED, RunStatus.FAILED}
        and may_resume(run)
        and st.button(
            "Resume",
            type="primary",
            icon=":material/play_arrow:",
            help="Goes on in the round where it stopped; accepted updates stay.",
        )
    ):
        _change(history, api.runs.resume)
    if st.button(
        "Copy", icon=":material/content_copy:", help="A new run with the same settings and seed."
    ):
        _copy(api, run)


def _copy(api: ApiClient, run: Run) -> None:
    try:
        copy = api.runs.clone(run.id)
    except UnauthenticatedError:
        raise
    except ApiError as error:
        st.error(escape(str(error)))
    else:
        st.switch_page(pages.RUN, query_params={"id": str(copy.id)})


def _change(history: LiveHistory, change: Callable[[UUID], Run]) -> None:
    try:
        history.run = change(history.run.id)
    except UnauthenticatedError:
        raise
    except ApiError as error:
        st.error(escape(str(error)))
    else:
        st.rerun()


def _is_live(run: Run, baseline: Run | None) -> bool:
    """True while there is something to wait for: the run itself, or what it is compared with."""
    return not run.status.is_terminal or (baseline is not None and not baseline.status.is_terminal)


def _live(run_id: UUID, federation: FederationDetail, refreshing: bool) -> None:
    """The part of the page that refreshes."""
    with session.problems_shown():
        api = session.current_api()
        history = _history(api, run_id)
        was_running = not history.run.status.is_terminal
        if was_running or history.cursor == 0:
            history.absorb(api.runs.live(run_id, history.cursor))
        baseline = baseline_of(api, history.run)
        _draw(api, history, federation, baseline)
        has_ended = was_running and history.run.status.is_terminal
        if has_ended or (refreshing and not _is_live(history.run, baseline)):
            st.rerun()  # the whole page once more: without polling and without the cancel button


def _draw(
    api: ApiClient, history: LiveHistory, federation: FederationDetail, baseline_run: Run | None
) -> None:
    names = {client.id: client.name for client in federation.clients} | history.client_names()
    styles = client_styles(names)
    is_compared = baseline_run is not None and baseline_run.status is RunStatus.COMPLETED
    baseline = reached(api, baseline_run.id) if baseline_run and is_compared else None
    run_view.header(history, baseline)
    refusal_notes(history.refusals)
    privacy_section(history)
    if history.rounds:
        run_view.adapters_section(history, api)
        run_view.clients_section(history)
        run_view.accuracy_section(history, styles, baseline)
        if history.run.strategy.name is not StrategyName.LOCAL_ONLY:
            baseline_section(history, styles, baseline, baseline_run, federation.clients)
        contributions_section(history, styles)
        run_view.training_section(history, styles)
        run_view.traffic_section(history, styles)
        mixing_section(history, styles)
        measured_section(history, styles, group_texts(history.run.strategy, federation.clients))
    run_view.events_section(history, session.viewer_zone())


main()
