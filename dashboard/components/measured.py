"""Every measured value of a run as tables: what the charts leave out is here."""

from collections.abc import Mapping, Sequence
from uuid import UUID

import pandas as pd
import streamlit as st

from backend.contracts.enums import RoundKind
from backend.contracts.metric_catalogue import METRICS, REPORT_VALUES, MetricInfo, Unit
from backend.contracts.runs import Round
from dashboard.components.charts import ClientStyle
from dashboard.components.formatting import NOTHING, bytes_text, percent_text, points_text
from dashboard.components.live_history import LiveHistory, newest
from dashboard.components.mixing import is_mixing


def measured_section(
    history: LiveHistory, styles: Mapping[UUID, ClientStyle], groups: Sequence[str]
) -> None:
    """The newest value of everything that was measured, by client, and the rounds' reports.

    Args:
        history: of the run.
        styles: of its clients.
        groups: who shares with whom, in words; empty without groups.
    """
    clients = {client: style.name for client, style in styles.items()}
    values = measured_table(history, clients)
    reports = report_table(history, groups)
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


def report_table(history: LiveHistory, groups: Sequence[str]) -> pd.DataFrame:
    """One row per value of a report, one column per round that has been aggregated.

    Weights of pairs of clients are left out: they are a matrix of their own.
    """
    closed = [item for _, item in sorted(history.rounds.items()) if item.report]
    names = sorted({name for item in closed for name in item.report if not is_mixing(name)})
    is_grouped = any("/" in name for name in names)
    rows = []
    for name in names:
        group, _, bare = name.rpartition("/")
        info = REPORT_VALUES.get(bare) or MetricInfo(name=bare, unit=Unit.RATIO, description="")
        cells = {_heading(item): value_text(info, item.report.get(name)) for item in closed}
        among = {"Among": _group_text(group, groups)} if is_grouped else {}
        rows.append({"Value": _label(info), **among, **cells, "Meaning": info.description})
    return pd.DataFrame(rows)


def _heading(item: Round) -> str:
    return "Codes" if item.kind is RoundKind.GAUGE else f"Round {item.round_number}"


def _group_text(group: str, groups: Sequence[str]) -> str:
    """`group_1` -> who the second group is; values without a group are of everybody."""
    number = group.removeprefix("group_")
    if number.isdecimal() and int(number) < len(groups):
        return groups[int(number)]
    return group.replace("_", " ") or "everybody"


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
