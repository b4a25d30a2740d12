"""What a comparison page shows, from top to bottom; every part takes the results and draws it."""

from collections.abc import Callable
from typing import Literal
from uuid import UUID

import pandas as pd
import streamlit as st

from backend.api_client.client import ApiClient
from backend.contracts.comparisons import (
    ArmResult,
    Comparison,
    ComparisonResults,
    ComparisonRun,
)
from backend.contracts.enums import RunStatus
from backend.contracts.evidence import Interval, Spread, Verdict
from dashboard import pages
from dashboard.components import comparison_charts as charts
from dashboard.components.formatting import NOTHING, bytes_text, escape
from dashboard.components.labels import BadgeColour
from dashboard.components.run_badge import run_badge

MOST_ROWS = 25
HEIGHT_OF_MOST = 860  # pixels
CHART = {"displaylogo": False, "modeBarButtonsToRemove": ["lasso2d", "select2d"]}

VERDICT_COLOURS: dict[Verdict, BadgeColour] = {
    Verdict.TRANSFER: "green",
    Verdict.SHRINKAGE: "orange",
    Verdict.UNCONTROLLED_GAIN: "blue",
    Verdict.NO_GAIN: "gray",
    Verdict.TOO_FEW_SEEDS: "gray",
}


def header(comparison: Comparison) -> None:
    """Status, and how many runs have ended."""
    total = sum(comparison.num_runs.values())
    with st.container(horizontal=True, vertical_alignment="center"):
        run_badge(comparison.status)
        st.markdown(f"**{comparison.num_ended} of {total} runs have ended**", width="content")
        st.caption(_counts(comparison), width="content")
    st.progress(comparison.num_ended / total if total else 0.0)


def verdicts(results: ComparisonResults) -> None:
    """One sentence for each arm that shares."""
    st.subheader("Does sharing pay?")
    judged = [arm for arm in results.arms if arm.verdict is not None]
    if not judged:
        st.caption("The verdict needs completed runs of a strategy and of local only.")
        return
    if not results.comparison.status.is_terminal:
        st.caption("So far; runs go on.")
    for arm in judged:
        if arm.verdict is not None:
            word, _, figures = arm.sentence.partition(": ")
            colour = VERDICT_COLOURS[arm.verdict]
            st.markdown(f":{colour}-badge[{escape(word)}] {escape(figures)}")
    if len(judged) > 1:
        st.caption(
            f"{len(judged)} arms, each tested at 95 %: about one in twenty such intervals excludes "
            "zero by chance."
        )


def table(results: ComparisonResults) -> None:
    """Mean and spread for each arm, overall and by client, with costs."""
    st.subheader("Delivered accuracy")
    seeds = len(results.comparison.seeds)
    rows = pd.DataFrame([_row(arm, seeds) for arm in results.arms])
    spreads = [arm.overall for arm in results.arms if arm.overall.delivered]
    if spreads and not any(item.after_training for item in spreads):
        rows = rows.drop(columns="After training")  # nobody evaluates so often
    st.dataframe(
        rows,
        hide_index=True,
        key="comparison.table",
        height=_table_height(results),
        column_config={
            "Arm": st.column_config.TextColumn(width="medium", pinned=True),
            "Mean": st.column_config.NumberColumn(format="%.1f %%", help="Over clients and seeds"),
            "SD": st.column_config.NumberColumn(
                format="± %.1f", help="Standard deviation over seeds of the mean over clients"
            ),
        },
    )
    st.caption(
        "Share of a client's own test split that the delivered adapter answers correctly, mean ± "
        "standard deviation over the completed seeds, in percent. Differences are in percentage "
        f"points, paired by seed, with 95 % intervals. {_best_local(results)}"
    )


def cost_section(results: ComparisonResults) -> None:
    """Accuracy against bytes and against seconds."""
    if not any(arm.overall.delivered for arm in results.arms):
        return
    styles = charts.arm_styles(results.arms)
    left, right = st.columns([5, 6])  # the legend on the right serves both
    with left:
        st.subheader("Accuracy against bytes")
        st.plotly_chart(
            charts.bytes_figure(results.arms, styles), key="comparison.bytes", config=CHART
        )
    with right:
        st.subheader("Accuracy against seconds")
        st.plotly_chart(
            charts.seconds_figure(results.arms, styles), key="comparison.seconds", config=CHART
        )
    st.caption(
        "Dotted: the Pareto front, on which no arm is as good for less. Grey crosses: negative "
        "controls, which are no candidates. Bars: standard deviation over seeds."
    )
    st.subheader("By client")
    st.plotly_chart(
        charts.client_figure(results.arms, styles), key="comparison.clients", config=CHART
    )
    num_clients = len(results.arms[0].clients)
    if num_clients > charts.MAX_CLIENTS:
        st.caption(
            f"The first {charts.MAX_CLIENTS} of {num_clients} clients; the CSV has all of them."
        )


def runs(results: ComparisonResults) -> None:
    """Where every run stands, why some have no result, and a way to each."""
    st.subheader("Runs")
    for run in results.runs:
        if run.status is RunStatus.FAILED:
            st.error(escape(f"{run.arm}, seed {run.seed}: {run.error}"), icon=":material/error:")
    num_rounds = results.comparison.num_rounds
    st.dataframe(
        pd.DataFrame(
            [
                {"Arm": arm.title}
                | {
                    f"seed {run.seed}": _where(run, num_rounds)
                    for run in results.runs
                    if run.arm == arm.name
                }
                for arm in results.arms
            ]
        ),
        hide_index=True,
        key="comparison.runs",
        height=_table_height(results),
    )


def open_run(results: ComparisonResults) -> None:
    """A way to one run's own page; outside of what refreshes, so that a choice stays."""
    left, right = st.columns([3, 1], vertical_alignment="bottom")
    run = left.selectbox(
        "One run in detail", results.runs, key="comparison.run",
        format_func=lambda item: f"{item.arm}, seed {item.seed}",
    )  # fmt: skip
    if run is not None:
        right.page_link(
            pages.RUN, label="Open it", icon=":material/monitoring:",
            query_params={"id": str(run.run_id)},
        )  # fmt: skip


def downloads(api: ApiClient, comparison: Comparison) -> None:
    """All figures, and the report."""
    with st.container(horizontal=True):
        for label, kind, mime, fetch in (
            ("Figures (CSV)", "csv", "text/csv", api.comparisons.results_csv),
            ("Report (Markdown)", "md", "text/markdown", api.comparisons.results_markdown),
        ):
            st.download_button(
                label,
                data=_later(fetch, comparison),
                file_name=f"{comparison.name}.{kind}",
                mime=mime,
                icon=":material/download:",
                on_click="ignore",
                key=f"comparison.download.{kind}",
            )


def _later(fetch: Callable[[UUID], bytes], comparison: Comparison) -> Callable[[], bytes]:
    """Fetches the file when the button is pressed, not before."""
    return lambda: fetch(comparison.id)


def _counts(comparison: Comparison) -> str:
    return ", ".join(
        f"{comparison.num_runs[status]} {status.value}"
        for status in RunStatus
        if comparison.num_runs.get(status)
    )


def _best_local(results: ComparisonResults) -> str:
    match results.best_local:
        case None:
            return "No local arm has a result yet."
        case "untrained":
            return "Best local: the untrained models, because local training made them worse."
        case name:
            return f"Best local: {escape(name)}."


def _table_height(results: ComparisonResults) -> int | Literal["content"]:
    """All arms at once, up to 25, instead of the usual ten rows."""
    return "content" if len(results.arms) <= MOST_ROWS else HEIGHT_OF_MOST


def _row(arm: ArmResult, num_seeds: int) -> dict[str, object]:
    overall = arm.overall.delivered
    sent = charts.total_bytes(arm)
    seconds = charts.training_seconds(arm)
    return {
        "Arm": arm.title,
        "Seeds": f"{len(arm.seeds)} of {num_seeds}",
        "Mean": None if overall is None else 100 * overall.mean,
        "SD": None if overall is None or overall.sd is None else 100 * overall.sd,
        "Untrained": _percent(arm.overall.untrained),
        "After training": _percent(arm.overall.after_training),
        "Over best local": _points(arm.gain),
        "Over its control": _points(arm.over_control),
        **{client.client_name: _percent(client.delivered) for client in arm.clients},
        "Payload": NOTHING if sent is None else bytes_text(sent),
        "Training": NOTHING if seconds is None else f"{seconds:.1f} s",
    }


def _percent(value: Spread | None) -> str:
    if value is None:
        return NOTHING
    mean = f"{100 * value.mean:.1f}"
    return mean if value.sd is None else f"{mean} ± {100 * value.sd:.1f}"


def _points(value: Interval | None) -> str:
    if value is None:
        return NOTHING
    mean = f"{100 * value.mean:+.1f}"
    return mean if value.half_width is None else f"{mean} ± {100 * value.half_width:.1f}"


def _where(run: ComparisonRun, num_rounds: int) -> str:
    if run.status is not RunStatus.RUNNING:
        return run.status.value
    if run.round_number == 0:
        return "agreeing on codes"
    if run.round_number > num_rounds:
        return "delivering"
    return f"round {run.round_number} of {num_rounds}"
