"""Who learns from whom: the weights of a round's report as a matrix of clients."""

from collections.abc import Mapping
from uuid import UUID

import plotly.graph_objects as go
import streamlit as st

from dashboard.components.charts import GREY, PALETTE, ClientStyle
from dashboard.components.live_history import LiveHistory

MIXING = "mixing_weight"
MAX_NUMBERS = 15  # with more clients the cells are too small for numbers; hovering tells them
CELL = 38  # pixels
MIN_HEIGHT = 240

Weights = dict[UUID, dict[UUID, float]]
"""Receiver -> source -> weight in [0, 1]."""


def is_mixing(name: str) -> bool:
    """Whether a report's value is one cell of the matrix: `mixing_weight/<receiver>/<source>`."""
    return MIXING in name.split("/")[:-2]


def mixing_weights(report: Mapping[str, float]) -> Weights:
    """The weights that a report carries; of all groups, where clients share inside groups."""
    weights: Weights = {}
    for name, value in report.items():
        if is_mixing(name):
            receiver, source = name.split("/")[-2:]
            weights.setdefault(UUID(receiver), {})[UUID(source)] = value
    return weights


def mixing_figure(styles: Mapping[UUID, ClientStyle], weights: Weights) -> go.Figure:
    """A row per receiver and a column per source; pairs that share nothing stay empty."""
    taking = {client for row in weights.values() for client in row} | weights.keys()
    shown = [client for client in styles if client in taking]
    names = [styles[client].name for client in shown]
    cells = [
        [
            None if weight is None else 100 * weight
            for weight in (weights.get(receiver, {}).get(source) for source in shown)
        ]
        for receiver in shown
    ]
    figure = go.Figure(
        go.Heatmap(
            x=names,
            y=names,
            z=cells,
            zmin=0,
            zmax=max((cell for row in cells for cell in row if cell is not None), default=100),
            colorscale=[[0, "rgba(59, 111, 216, 0.06)"], [1, PALETTE[0]]],
            colorbar={"ticksuffix": " %", "thickness": 12, "outlinewidth": 0},
            texttemplate="%{z:.0f}" if len(shown) <= MAX_NUMBERS else None,
            hovertemplate="%{y} takes %{z:.1f} % from %{x}<extra></extra>",
            hoverongaps=False,
            xgap=2,
            ygap=2,
        )
    )
    figure.update_layout(
        height=max(MIN_HEIGHT, 130 + CELL * len(shown)),
        margin={"l": 8, "r": 8, "t": 8, "b": 8},
        uirevision="keep",
    )
    axis = {"showgrid": False, "zeroline": False, "automargin": True, "title_font_color": GREY}
    figure.update_xaxes(title_text="from", **axis)
    figure.update_yaxes(title_text="takes", autorange="reversed", **axis)
    return figure


def mixing_section(history: LiveHistory, styles: Mapping[UUID, ClientStyle]) -> None:
    """The matrix of a round one may choose; nothing for strategies without such weights."""
    found = {
        number: weights
        for number, item in sorted(history.rounds.items(), reverse=True)
        if (weights := mixing_weights(item.report))
    }
    if not found:
        return
    st.subheader("Who learns from whom")
    left, right = st.columns([3, 2])
    number = next(iter(found))
    with right:
        if len(found) > 1:
            number = st.selectbox(
                "Round", list(found), key="run.mixing.round", help="The newest one comes first"
            )
        st.caption(
            "Each row says how much of what a client receives comes from which client, in "
            "percent; a row adds up to 100. Empty: nothing comes from there."
        )
        equal = _equal_share(found[number])
        if equal is not None:
            st.caption(f"If everybody counted alike, every cell would say {100 * equal:.0f}.")
    left.plotly_chart(
        mixing_figure(styles, found[number]), key="run.mixing", config={"displaylogo": False}
    )


def _equal_share(weights: Weights) -> float | None:
    """What every source would weigh alike; None where rows differ in their number of sources."""
    lengths = {len(row) for row in weights.values()}
    return 1 / lengths.pop() if len(lengths) == 1 else None
