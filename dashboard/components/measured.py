"""Every measured value of a run as tables: what the charts leave out is here."""

from collections.abc import Mapping
from uuid import UUID

import pandas as pd
import streamlit as st

from backend.contracts.metric_catalogue import METRICS, REPORT_VALUES, MetricInfo, Unit
from dashboard.components.charts import ClientStyle
from dashboard.components.formatting import NOTHING, bytes_text, percent_text, points_text
from dashboard.components.live_history import LiveHistory, newest


def measured_section(history: LiveHistory, styles: Mapping[UUID, ClientStyle]) -> None:
    """The newest value of everything that was measured, by client, and the rounds' reports."""
    clients = {client: style.name for client, style in styles.items()}
    values = measured_table(history, clients)
    reports = report_table(history)
    if values.empty and reports.empty:
        return
    with st.expander("All measured values", icon=":material/table:"):
        if not values.empty:
            st.caption("Newest value of each client.")
            st.dataframe(values, hide_index=True, key="run.measured", column_config=_WIDE)
        if not reports.empty:
            st.caption("What the server's aggregation said of each round.")
            st.dataframe(reports, hide_index=True, key="run.reports", column_config=_WIDE)


def measured_table(history: LiveHistory, clients: Mapping[UUID, str]) -> pd.DataFrame:
    """One row per metric that anybody has, one column per client."""
    rows = []
    for name, info in METRICS.items():
        found = newest(history.per_round(name))
        if found:
            cells = {
                label: value_text(info, found.get(client)) for client, label in clients.items()
            }
            rows.append({"Value": _label(info), **cells, "Meaning": info.description})
    return pd.DataFrame(rows)


def report_table(history: LiveHistory) -> pd.DataFrame:
    """One row per value of a report, one column per round that has been aggregated."""
    closed = [item for _, item in sorted(history.rounds.items()) if item.report]
    names = sorted({name for item in closed for name in item.report})
    rows = []
    for name in names:
        info = _report_info(name)
        cells = {
            f"Round {item.round_number}": value_text(info, item.report.get(name)) for item in closed
        }
        rows.append({"Value": _label(info), **cells, "Meaning": info.description})
    return pd.DataFrame(rows)


def _report_info(name: str) -> MetricInfo:
    """Of a report's value; `group_0/relative_change` is the value of one group of clients."""
    group, _, bare = name.rpartition("/")
    info = REPORT_VALUES.get(bare) or MetricInfo(name=bare, unit=Unit.RATIO, description="")
    return info.model_copy(update={"name": f"{group}: {bare}"}) if group else info


def value_text(info: MetricInfo, value: float | None) -> str:
    """A value in its unit, for people."""
    if value is None:
        return NOTHING
    match info.unit:
        case Unit.SHARE:
            return percent_text(value)
        case Unit.DIFFERENCE:
            return points_text(value)
        case Unit.BYTES:
            return bytes_text(value)
        case Unit.COUNT:
            return f"{value:,.0f}" if float(value).is_integer() else f"{value:,.2f}"
        case Unit.SECONDS:
            return f"{value:,.2f} s"
        case _:
            return f"{value:.4g}"


def _label(info: MetricInfo) -> str:
    unit = "" if info.unit in _SPELLED else f" ({info.unit.value})"
    return info.name.replace("_", " ") + unit


_SPELLED = frozenset({Unit.SHARE, Unit.DIFFERENCE, Unit.BYTES, Unit.COUNT, Unit.SECONDS})
_WIDE = {"Meaning": st.column_config.TextColumn(width="large")}
