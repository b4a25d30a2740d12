"""Charts of a comparison as pure functions: results in, a figure out."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import plotly.graph_objects as go

from backend.contracts.comparisons import ArmResult
from backend.contracts.evidence import Spread
from dashboard.components.charts import GREY, PALETTE, finish
from dashboard.components.formatting import bytes_text

SYMBOLS = ("circle", "square", "diamond", "triangle-up", "star")
CONTROL_SYMBOL = "x-thin-open"
MAX_CLIENTS = 24  # more rows than this nobody reads; the CSV has them all
COST_HEIGHT = 430
BYTE_TICKS = [float(1024**unit * digits) for unit in range(1, 5) for digits in (1, 10, 100)]
DOT_HEIGHT = 13  # pixels for one arm in one client's row


@dataclass(frozen=True, slots=True)
class ArmStyle:
    """How one arm is drawn in every chart of a page."""

    colour: str
    symbol: str


def arm_styles(arms: Sequence[ArmResult]) -> dict[str, ArmStyle]:
    """A colour and a symbol per arm, 50 different ones; negative controls are grey crosses."""
    candidates = [arm.name for arm in arms if not arm.is_control]
    styles = {
        name: ArmStyle(PALETTE[i % len(PALETTE)], SYMBOLS[i // len(PALETTE) % len(SYMBOLS)])
        for i, name in enumerate(candidates)
    }
    return {arm.name: styles.get(arm.name, ArmStyle(GREY, CONTROL_SYMBOL)) for arm in arms}


def total_bytes(arm: ArmResult) -> float | None:
    """Payload in both directions, mean over seeds."""
    if arm.bytes_up is None or arm.bytes_down is None:
        return None
    return arm.bytes_up.mean + arm.bytes_down.mean


def training_seconds(arm: ArmResult) -> float | None:
    """Training time of all clients, mean over seeds."""
    return arm.seconds_train.mean if arm.seconds_train else None


def bytes_figure(arms: Sequence[ArmResult], styles: Mapping[str, ArmStyle]) -> go.Figure:
    """Delivered accuracy against payload on a logarithmic axis; arms that send nothing stand left.

    It stands beside `seconds_figure`, whose legend serves both. The dotted line is the Pareto
    front: no arm is as good for fewer bytes.
    """
    costs = {arm.name: total_bytes(arm) for arm in arms}
    positive = [cost for cost in costs.values() if cost]
    nothing = min(positive, default=10.0) / 10  # where 0 stands, which has no logarithm
    figure = _cost_figure(
        arms,
        styles,
        {name: max(cost, nothing) for name, cost in costs.items() if cost is not None},
        {arm.name for arm in arms if arm.is_on_bytes_front},
        lambda arm: bytes_text(costs[arm.name] or 0.0),
    )
    finish(figure, "Payload of a run, up and down (logarithmic)", "Delivered test accuracy (%)")
    ticks = [tick for tick in BYTE_TICKS if 2 * nothing < tick <= 4 * max(positive, default=0.0)]
    figure.update_xaxes(
        type="log",
        tickvals=[nothing, *ticks],
        ticktext=["nothing", *map(bytes_text, ticks)],
        range=[math.log10(nothing) - 0.2, math.log10(max([*positive, 10.0 * nothing])) + 0.3],
    )
    return _compact(figure).update_layout(showlegend=False)


def seconds_figure(arms: Sequence[ArmResult], styles: Mapping[str, ArmStyle]) -> go.Figure:
    """Delivered accuracy against training time, with the Pareto front."""
    costs = {arm.name: training_seconds(arm) for arm in arms}
    figure = _cost_figure(
        arms,
        styles,
        {name: cost for name, cost in costs.items() if cost is not None},
        {arm.name for arm in arms if arm.is_on_seconds_front},
        lambda arm: f"{costs[arm.name] or 0.0:.1f} s",
    )
    finish(figure, "Training of a run, all clients (seconds)", "Delivered test accuracy (%)")
    figure.update_xaxes(rangemode="tozero")
    return _compact(figure)


def client_figure(arms: Sequence[ArmResult], styles: Mapping[str, ArmStyle]) -> go.Figure:
    """A row per client, a dot per arm: mean delivered accuracy with its standard deviation."""
    names = [client.client_name for client in arms[0].clients][:MAX_CLIENTS] if arms else []
    shown = [arm for arm in arms if arm.overall.delivered is not None]
    step = 0.8 / max(1, len(shown))
    figure = go.Figure()
    for place, arm in enumerate(shown):
        measured = [
            (row + (place - (len(shown) - 1) / 2) * step, client.delivered)
            for row, client in enumerate(arm.clients[:MAX_CLIENTS])
            if client.delivered is not None
        ]
        style = styles[arm.name]
        figure.add_scatter(
            x=[100 * value.mean for _, value in measured],
            y=[row for row, _ in measured],
            error_x=_bars([value for _, value in measured]),
            name=arm.title,
            mode="markers",
            marker=_marker(style, 9),
            hovertemplate=f"{arm.title}: %{{x:.1f}} %<extra></extra>",
        )
    finish(figure, "Delivered test accuracy (%)", "")
    for row in range(1, len(names)):
        figure.add_hline(y=row - 0.5, line={"color": GREY, "width": 0.5})
    figure.update_yaxes(
        tickvals=list(range(len(names))),
        zeroline=False,  # the first row is no more than the others
        ticktext=names,
        range=[len(names) - 0.5, -0.5],
        automargin=True,
        showgrid=False,
    )
    row_height = max(36, DOT_HEIGHT * len(shown))
    return _compact(figure).update_layout(height=90 + row_height * len(names))


def _cost_figure(
    arms: Sequence[ArmResult],
    styles: Mapping[str, ArmStyle],
    costs: Mapping[str, float],
    front: set[str],
    cost_text: Callable[[ArmResult], str],
) -> go.Figure:
    figure = go.Figure()
    points = [
        (arm, costs[arm.name], arm.overall.delivered)
        for arm in arms
        if arm.name in costs and arm.overall.delivered is not None
    ]
    on_front = sorted((cost, 100 * value.mean) for arm, cost, value in points if arm.name in front)
    if len(on_front) > 1:
        figure.add_scatter(
            x=[cost for cost, _ in on_front],
            y=[value for _, value in on_front],
            name="Pareto front",
            mode="lines",
            line={"color": GREY, "dash": "dot", "width": 1.5, "shape": "hv"},
            hoverinfo="skip",
        )
    for arm, cost, value in points:
        figure.add_scatter(
            x=[cost],
            y=[100 * value.mean],
            error_y=_bars([value]),
            name=arm.title,
            mode="markers",
            marker=_marker(styles[arm.name], 12 if arm.name in front else 9),
            hovertemplate=f"{arm.title}: %{{y:.1f}} %, {cost_text(arm)}<extra></extra>",
        )
    return figure


def _bars(values: Sequence[Spread]) -> dict[str, object]:
    return {
        "type": "data",
        "array": [100 * (value.sd or 0.0) for value in values],
        "thickness": 1.2,
        "width": 3,
    }


def _marker(style: ArmStyle, size: int) -> dict[str, object]:
    return {
        "color": style.colour,
        "symbol": style.symbol,
        "size": size,
        "line": {"width": 2 if style.symbol == CONTROL_SYMBOL else 0, "color": style.colour},
    }


def _compact(figure: go.Figure) -> go.Figure:
    """Dots are read one by one; the legend names all, whatever their number."""
    return figure.update_layout(hovermode="closest", showlegend=True, height=COST_HEIGHT)
