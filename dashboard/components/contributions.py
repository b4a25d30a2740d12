"""Who helps whom in a run, and who is unusual: the server's scores of its clients."""

from collections.abc import Mapping
from uuid import UUID

import pandas as pd
import plotly.graph_objects as go
import streamlit as st

from backend.contracts.metrics import MetricName
from dashboard.components.charts import GREY, ClientStyle, finish, round_ticks
from dashboard.components.formatting import NOTHING, escape, percent_text
from dashboard.components.live_history import ByRound, LiveHistory

UNUSUAL = 3.5
"""Outlier score above which Iglewicz and Hoaglin (1993) mark a value."""

OPPOSED = -0.2
"""Contribution from which on a client is said to pull the other way: nearer 0 it is unrelated."""

FEW_CLIENTS = 5
"""With fewer, the usual distance is that of one or two clients and changes a lot by chance."""

HOW_TO_READ = (
    "The server compares what the clients changed. **Outlier score**: how far a client's change "
    "lies from the median of all, in usual distances; above 3.5 it is unusual (above 10.5 with "
    "fewer than five clients, whose scores vary a lot by chance). **Contribution**: "
    "1, it changes what all others change; 0, something else; below 0, the opposite. Look at the "
    "outlier score first: one loud client turns everybody's contribution round."
)
HEIGHT = 280
_DIGITS = {
    "Outlier score": st.column_config.NumberColumn(format="%.1f"),
    "Contribution": st.column_config.NumberColumn(format="%.2f"),
    "Cosine to mean": st.column_config.NumberColumn(format="%.2f"),
}
CAUTION = "Unusual is not hostile: other data or another task look the same."


def contributions_section(history: LiveHistory, styles: Mapping[UUID, ClientStyle]) -> None:
    """The newest scores and the course of the outlier score; nothing where nothing was compared."""
    table = contributions_table(history, styles)
    if table.empty:
        return
    st.subheader("Who helps, and who is unusual")
    st.caption(HOW_TO_READ)
    unusual = list(table[table["Remark"].str.startswith("unusual")]["Client"])
    if unusual:
        names = ", ".join(escape(name) for name in unusual)
        st.warning(f"Unusual in its newest round: {names}. {CAUTION}", icon=":material/warning:")
    st.dataframe(table, hide_index=True, key="run.contributions", column_config=_DIGITS)
    scores = history.per_round(MetricName.OUTLIER_SCORE)
    if scores:
        st.plotly_chart(
            outlier_figure(styles, scores), key="run.outliers", config={"displaylogo": False}
        )


def contributions_table(history: LiveHistory, styles: Mapping[UUID, ClientStyle]) -> pd.DataFrame:
    """One row per client that was compared, the most unusual first; of its newest such round."""
    compared = history.per_round(MetricName.CONTRIBUTION)
    rows = []
    for client, style in styles.items():
        if client not in compared:
            continue
        number = max(compared[client])
        values = {
            name: history.per_round(name).get(client, {}).get(number)
            for name in (
                MetricName.OUTLIER_SCORE,
                MetricName.CONTRIBUTION,
                MetricName.COSINE_TO_MEAN,
                MetricName.SENT_NORM,
                MetricName.NORM_SHARE,
                MetricName.KEPT_SHARE,
            )
        }
        rows.append(_row(style.name, number, values, len(compared)))
    table = pd.DataFrame(rows)
    if table.empty:
        return table
    order = table["Outlier score"].fillna(0).sort_values(ascending=False, kind="stable").index
    table = table.loc[order]
    return table if table["Kept"].ne(NOTHING).any() else table.drop(columns="Kept")


def _row(
    name: str, number: int, values: Mapping[MetricName, float | None], num_clients: int
) -> dict[str, object]:
    outlier = values[MetricName.OUTLIER_SCORE]
    return {
        "Client": name,
        "Round": number,
        "Outlier score": None if outlier is None else round(outlier, 1),
        "Contribution": _cosine(values[MetricName.CONTRIBUTION]),
        "Cosine to mean": _cosine(values[MetricName.COSINE_TO_MEAN]),
        "Norm": _digits(values[MetricName.SENT_NORM]),
        "Share of the norm": percent_text(values[MetricName.NORM_SHARE]),
        "Kept": percent_text(values[MetricName.KEPT_SHARE]),
        "Remark": remark(outlier, values[MetricName.CONTRIBUTION], num_clients),
    }


def unusual_above(num_clients: int) -> float:
    """The outlier score above which one of so many clients is called unusual."""
    return UNUSUAL if num_clients >= FEW_CLIENTS else 3 * UNUSUAL


def remark(outlier: float | None, contribution: float | None, num_clients: int) -> str:
    """What stands out, in words; empty: nothing does."""
    if outlier is not None and outlier > unusual_above(num_clients):
        return "unusual"
    if contribution is not None and contribution <= OPPOSED:
        return "pulls the other way"
    return ""


def outlier_figure(styles: Mapping[UUID, ClientStyle], scores: Mapping[UUID, ByRound]) -> go.Figure:
    """Outlier scores over rounds, with the line above which a client is unusual."""
    figure = go.Figure()
    numbers = sorted({number for values in scores.values() for number in values})
    for client, style in styles.items():
        values = sorted(scores.get(client, {}).items())
        if values:
            figure.add_scatter(
                x=[number for number, _ in values],
                y=[score for _, score in values],
                name=style.name,
                mode="lines+markers",
                line={"color": style.colour, "dash": style.dash, "width": 2},
                hovertemplate="%{y:.1f}",
            )
    figure.add_scatter(
        x=[numbers[0] - 0.5, numbers[-1] + 0.5],
        y=[unusual_above(len(scores))] * 2,
        name="unusual above",
        mode="lines",
        line={"dash": "dash", "color": GREY, "width": 1.5},
        hoverinfo="skip",
    )
    finish(figure, "Round", "Outlier score")
    figure.update_xaxes(tickvals=round_ticks(numbers[-1]))
    return figure.update_layout(height=HEIGHT)


def _digits(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.3g}"


def _cosine(value: float | None) -> float | None:
    return None if value is None else round(value, 2)
