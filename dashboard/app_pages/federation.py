"""One federation: its members, its runs, another run, and how the runs compare."""

import pandas as pd
import streamlit as st
from pydantic import ValidationError

from backend.api_client.client import ApiClient
from backend.api_client.errors import ApiError, UnauthenticatedError
from backend.contracts.enums import RunStatus
from backend.contracts.federations import FederationDetail
from backend.contracts.runs import Run, RunCreate
from dashboard import pages, session
from dashboard.components import run_form
from dashboard.components.address import id_in_address
from dashboard.components.archive import export_section
from dashboard.components.charts import comparison_figure
from dashboard.components.client_table import client_table
from dashboard.components.comparison_list import comparisons_section
from dashboard.components.compatibility import verdict
from dashboard.components.delivered import reached
from dashboard.components.form_errors import validation_errors
from dashboard.components.formatting import ago_text, escape, moment_text
from dashboard.components.labels import queue_text, round_text, run_title
from dashboard.components.live_history import mean
from dashboard.components.people import people_section
from dashboard.components.probe_set import probe_set_section
from dashboard.components.run_badge import run_badge
from dashboard.components.run_start import start_runs
from dashboard.components.server_clock import now
from dashboard.components.signatures import signatures_demand
from dashboard.components.storage import storage_section
from dashboard.components.traffic import traffic_quotas

ERRORS = "federation.errors"
MAX_COMPARED = 6
DEFAULT_COMPARED = 4


def main() -> None:
    """Show the federation that the address names."""
    federation_id = id_in_address("federation", pages.FEDERATIONS, "All federations")
    api = session.current_api()
    federation = api.federations.get(federation_id)
    runs = [
        run for run in api.federations.runs(federation_id) if run.comparison_id is None
    ]  # those of comparisons have a page of their own
    st.page_link(pages.FEDERATIONS, label="All federations", icon=":material/arrow_back:")
    st.title(escape(federation.name))
    if federation.description:
        st.markdown(escape(federation.description))
    st.caption(
        f"Global rank {federation.global_rank} · created "
        f"{moment_text(federation.created_at, session.viewer_zone())}"
    )
    st.subheader("Runs")
    _runs(runs)
    if session.may_operate():
        with st.expander(
            "Start another run" if runs else "Start the first run",
            icon=":material/add:",
            expanded=not runs or bool(st.session_state.get(ERRORS)),
        ):
            _start(api, federation)
    comparisons_section(api, federation)
    _comparison(api, federation, [run for run in runs if run.status is RunStatus.COMPLETED])
    st.subheader("Members")
    client_table(federation.clients)
    people_section(api, federation)
    probe_set_section(api, federation)
    signatures_demand(api, federation)
    if session.may_operate():
        traffic_quotas(api.federations.usage(federation.id))
    storage_section(api, federation)
    export_section(api, federation)


def _runs(runs: list[Run]) -> None:
    if not runs:
        st.caption("No run yet. An operator starts one with a strategy and its parameters.")
        return
    with st.container(border=True, height=420 if len(runs) > 6 else "content"):
        for run in runs:
            left, middle, right = st.columns([3.4, 3, 1.2], vertical_alignment="center")
            left.page_link(
                pages.RUN, label=run_title(run), query_params={"id": str(run.id)},
                icon=":material/monitoring:",
            )  # fmt: skip
            with middle, st.container(horizontal=True, vertical_alignment="center"):
                run_badge(run.status)
                st.caption(escape(run.error) if run.error else queue_text(run) or round_text(run))
            right.caption(ago_text(run.created_at, now()))


def _start(api: ApiClient, federation: FederationDetail) -> None:
    errors: dict[str, str] = st.session_state.get(ERRORS, {})
    values = run_form.run_form(api.catalogue.strategies(), "federation", errors)
    baseline = run_form.baseline_toggle(values, "federation")
    for path, message in errors.items():
        if not path.startswith(("strategy.", "training.")):
            st.error(escape(f"{path}: {message}" if path else message))
    judged = verdict(values["strategy"], federation.clients)
    for refusal in judged.refusals:
        st.warning(escape(refusal), icon=":material/warning:")
    for caution in judged.cautions:
        st.info(escape(caution), icon=":material/info:")
    if not st.button(
        "Start run", type="primary", icon=":material/play_arrow:", disabled=bool(judged.refusals)
    ):
        return
    try:
        started = start_runs(
            api, federation.id, RunCreate.model_validate(values), baseline=baseline
        )
    except ValidationError as error:
        st.session_state[ERRORS] = validation_errors(error)
        st.rerun()
    except UnauthenticatedError:
        raise
    except ApiError as error:
        st.session_state[ERRORS] = {"": str(error)} | run_form.api_errors(error)
        st.rerun()
    st.session_state.pop(ERRORS, None)
    st.switch_page(pages.RUN, query_params={"id": str(started.id)})


def _comparison(api: ApiClient, federation: FederationDetail, completed: list[Run]) -> None:
    st.subheader("Comparison of completed runs")
    if not completed:
        st.caption("As soon as a run has completed, its delivered accuracies appear here.")
        return
    shown = completed
    if len(completed) > 1:
        labels = {run.id: _run_label(run) for run in completed}
        shown = st.multiselect(
            "Runs to compare", completed, default=completed[:DEFAULT_COMPARED],
            format_func=lambda run: labels[run.id], max_selections=MAX_COMPARED,
            key="federation.compared",
        )  # fmt: skip
    # In the order of the chart's groups.
    ordered = sorted(federation.clients, key=lambda client: client.name.lower())
    names = {client.id: client.name for client in ordered}
    accuracies = {run.id: reached(api, run.id).delivered for run in shown}
    st.plotly_chart(
        comparison_figure(
            (_run_label(run), {names[c]: v for c, v in accuracies[run.id].items() if c in names})
            for run in shown
        ),
        key="federation.comparison",
        config={"displaylogo": False},
    )
    st.dataframe(
        pd.DataFrame(
            [
                {
                    "Run": _run_label(run),
                    "Mean over clients": _percent(mean(accuracies[run.id])),
                    **{name: _percent(accuracies[run.id].get(c)) for c, name in names.items()},
                }
                for run in shown
            ]
        ),
        hide_index=True,
        column_config={
            name: st.column_config.NumberColumn(format="%.1f %%")
            for name in ["Mean over clients", *names.values()]
        },
    )
    st.caption("Share of the client's own test split that the delivered adapter answers correctly.")


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share


def _run_label(run: Run) -> str:
    """Tells runs of equal settings apart by when they were made."""
    moment = run.created_at.astimezone(session.viewer_zone())
    return f"{run_title(run)} ({moment:%d %b %H:%M:%S})"


main()
