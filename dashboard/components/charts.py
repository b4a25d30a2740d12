"""Charts as pure functions: values in, a figure out. Colours are those of `client_styles`."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from uuid import UUID

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from dashboard.components.delivered import Pair
from dashboard.components.formatting import byte_unit
from dashboard.components.live_history import ByRound, running_total

# Mid tones that keep a contrast of 3:1 or more on the light and on the dark background.
PALETTE = (
    "#3b6fd8",
    "#d9661f",
    "#1f9d6b",
    "#b44fc4",
    "#c29211",
    "#d8436b",
    "#1a97b8",
    "#7d6b5d",
    "#7457d9",
    "#6f9426",
)
DASHES = ("solid", "dash", "dot", "dashdot", "longdash")
GREY = "#8a90a0"
HEIGHT = 360
CONFIG = {"displaylogo": False, "modeBarButtonsToRemove": ["lasso2d", "select2d"]}
"""Of every chart of a run: the buttons that make sense."""
FEW_CLIENTS = 12  # more than this: thinner lines, and the mean on top
FEW_VALUES = 30  # up to this many on a line, each has a dot; a single one is no line


@dataclass(frozen=True, slots=True)
class ClientStyle:
    """How one client is drawn in every chart of a page."""

    name: str
    colour: str
    dash: str


def client_styles(names: Mapping[UUID, str]) -> dict[UUID, ClientStyle]:
    """A colour and a dash per client, 50 different ones, fixed by the order of names."""
    ordered = sorted(names.items(), key=lambda item: (item[1].lower(), str(item[0])))
    return {
        client: ClientStyle(
            name, PALETTE[i % len(PALETTE)], DASHES[i // len(PALETTE) % len(DASHES)]
        )
        for i, (client, name) in enumerate(ordered)
    }


def accuracy_figure(
    styles: Mapping[UUID, ClientStyle],
    num_rounds: int,
    before: Mapping[UUID, ByRound],
    after: Mapping[UUID, ByRound],
    delivered: Mapping[UUID, float],
    baseline_mean: float | None,
) -> go.Figure:
    """Test accuracy over rounds.

    Lines: after training in a round. Thin lines: right after loading what was received, before
    training. Stars behind the last round: the delivered adapter. Shares in [0, 1] become %.
    """
    figure = go.Figure()
    many = len(styles) > FEW_CLIENTS
    for client, style in styles.items():
        _add_line(
            figure, style, after.get(client, {}), scale=100,
            width=1.2 if many else 2.5, opacity=0.45 if many else 1,
        )  # fmt: skip
        _add_line(
            figure, style, before.get(client, {}), width=1, scale=100, opacity=0.55, legend=False
        )
        if client in delivered:
            figure.add_scatter(
                x=[num_rounds + 1],
                y=[100 * delivered[client]],
                name=style.name,
                legendgroup=style.name,
                showlegend=False,
                mode="markers",
                marker={"symbol": "star", "size": 13, "color": style.colour},
                hovertemplate="delivered: %{y:.1f} %",
            )
    if many:
        _add_mean(figure, after)
    if baseline_mean is not None:
        figure.add_scatter(
            x=[0.5, num_rounds + 1.5],
            y=[100 * baseline_mean] * 2,
            name=f"local only, mean {100 * baseline_mean:.1f} %",
            mode="lines",
            line={"dash": "dash", "color": GREY, "width": 1.5},
            hoverinfo="skip",
        )
    finish(figure, "Round", "Test accuracy (%)")
    ticks = round_ticks(num_rounds)
    figure.update_xaxes(
        range=[0.5, num_rounds + 1.5],
        tickvals=[*ticks, num_rounds + 1],
        ticktext=[*map(str, ticks), "delivered"],
    )
    return figure


def loss_figure(
    styles: Mapping[UUID, ClientStyle],
    losses: Mapping[UUID, list[tuple[int, float]]],
    x_title: str,
) -> go.Figure:
    """Training loss over steps or rounds, as `x_title` says; a few values get dots."""
    figure = go.Figure()
    mode = "lines+markers" if max(map(len, losses.values()), default=0) <= FEW_VALUES else "lines"
    for client, style in styles.items():
        line = losses.get(client, [])
        if line:
            figure.add_scatter(
                x=[number for number, _ in line],
                y=[value for _, value in line],
                name=style.name,
                mode=mode,
                opacity=0.5 if len(styles) > FEW_CLIENTS else 1,
                line={"color": style.colour, "dash": style.dash, "width": 1.5},
                hovertemplate="%{y:.3f}",
            )
    return finish(figure, x_title, "Training loss (nats per token)")


def sparsity_figure(
    styles: Mapping[UUID, ClientStyle], num_rounds: int, sparsity: Mapping[UUID, ByRound]
) -> go.Figure:
    """Realised share of zeros in the shared matrices, per client and round."""
    figure = go.Figure()
    for client, style in styles.items():
        _add_line(figure, style, sparsity.get(client, {}), width=2, scale=100)
    finish(figure, "Round", "Zeros in the shared matrices (%)")
    figure.update_layout(showlegend=len(styles) <= FEW_CLIENTS)
    figure.update_yaxes(range=[-3, 103])
    figure.update_xaxes(range=[0.5, num_rounds + 0.5], tickvals=round_ticks(num_rounds))
    return figure


def traffic_figure(
    styles: Mapping[UUID, ClientStyle], up: Mapping[UUID, ByRound], down: Mapping[UUID, ByRound]
) -> go.Figure:
    """Payload per round, stacked over clients: sent on the left, received on the right.

    Many clients become one bar of their total: stripes nobody can tell apart say less.
    """
    if len(styles) > FEW_CLIENTS:
        everybody = UUID(int=0)
        styles = {everybody: ClientStyle(f"all {len(styles)} clients", PALETTE[0], "solid")}
        up, down = {everybody: _totals(up)}, {everybody: _totals(down)}
    unit, size = byte_unit(max([*_totals(up).values(), *_totals(down).values()], default=0))
    figure = make_subplots(cols=2, shared_yaxes=True, horizontal_spacing=0.04)
    for column, values in ((1, up), (2, down)):
        for client, style in styles.items():
            rounds = values.get(client, {})
            if rounds:
                figure.add_bar(
                    x=sorted(rounds),
                    y=[rounds[number] / size for number in sorted(rounds)],
                    name=style.name,
                    legendgroup=style.name,
                    showlegend=column == 1,
                    marker={"color": style.colour, "line": {"width": 0}},
                    hovertemplate=f"%{{y:.2f}} {unit}",
                    row=1,
                    col=column,
                )
    finish(figure, "Round", "")
    figure.update_yaxes(title_text=f"Payload per round ({unit})", col=1)
    figure.update_yaxes(rangemode="nonnegative")
    figure.update_xaxes(title_text="Round · sent by clients (up)", col=1)
    figure.update_xaxes(title_text="Round · received by clients (down)", col=2)
    figure.update_xaxes(tickvals=round_ticks(max([*_totals(up), *_totals(down)], default=1)))
    figure.update_layout(barmode="stack", bargap=0.25)
    return figure


def cumulative_traffic_figure(up: ByRound, down: ByRound, lora: ByRound) -> go.Figure:
    """Payload of all clients since the start, beside what sending LoRA A and B up would cost."""
    lines = (
        ("Sent (up)", running_total(up), PALETTE[0], "solid"),
        ("Received (down)", running_total(down), PALETTE[2], "solid"),
        ("Reference: sending LoRA A + B up", running_total(lora), GREY, "dash"),
    )
    unit, size = byte_unit(max((max(line.values()) for _, line, _, _ in lines if line), default=0))
    figure = go.Figure()
    for name, line, colour, dash in lines:
        if line:
            figure.add_scatter(
                x=list(line),
                y=[value / size for value in line.values()],
                name=name,
                mode="lines+markers",
                line={"color": colour, "dash": dash, "width": 2.5},
                hovertemplate=f"%{{y:.2f}} {unit}",
            )
    finish(figure, "Round", f"Payload since the start ({unit})")
    figure.update_yaxes(rangemode="tozero")
    figure.update_xaxes(tickvals=round_ticks(max([*up, *down, *lora], default=1)))
    return figure


def gain_figure(
    styles: Mapping[UUID, ClientStyle],
    pairs: Mapping[UUID, Pair],
) -> go.Figure:
    """Each client's accuracy minus its own local-only baseline, in percentage points."""
    shown = [client for client in styles if client in pairs]
    gains = [100 * pairs[client].gain for client in shown]
    figure = go.Figure(
        go.Bar(
            x=gains,
            y=[styles[client].name for client in shown],
            orientation="h",
            marker_color=["#1f9d6b" if gain >= 0 else "#d8436b" for gain in gains],
            text=[f"{gain:+.1f}" for gain in gains],
            textposition="outside",
            cliponaxis=False,
            customdata=[[100 * pairs[c].own, 100 * pairs[c].local] for c in shown],
            hovertemplate="this run %{customdata[0]:.1f} %, local only %{customdata[1]:.1f} %"
            "<extra></extra>",
        )
    )
    finish(figure, "Difference to local only (percentage points)", "")
    figure.add_vline(x=0, line={"color": GREY, "width": 1})
    room = 0.08 * max(map(abs, gains), default=1) or 1  # for the number at a bar's end
    lowest, highest = min(0, *gains), max(0, *gains)
    figure.update_xaxes(range=[lowest - room * (lowest < 0), highest + room])
    figure.update_yaxes(autorange="reversed", automargin=True)
    figure.update_layout(
        hovermode="closest", height=max(180, 60 + 30 * len(shown)), margin_t=8, bargap=0.35
    )
    return figure


def comparison_figure(runs: Iterable[tuple[str, Mapping[str, float]]]) -> go.Figure:
    """Delivered accuracy per client, one group of bars per client and one bar per run.

    Args:
        runs: label of each run, and its accuracy in [0, 1] by client name.
    """
    figure = go.Figure()
    for i, (label, accuracy) in enumerate(runs):
        names = sorted(accuracy, key=str.lower)
        figure.add_bar(
            x=names,
            y=[100 * accuracy[name] for name in names],
            name=label,
            marker={"color": PALETTE[i % len(PALETTE)], "line": {"width": 0}},
            hovertemplate="%{y:.1f} %",
        )
    finish(figure, "", "Delivered test accuracy (%)")
    figure.update_layout(barmode="group", bargap=0.3, bargroupgap=0.06)
    figure.update_yaxes(rangemode="tozero")
    return figure


def layer_map_figure(
    styles: Mapping[UUID, ClientStyle], layers: Mapping[UUID, list[float]], num_slots: int
) -> go.Figure:
    """Where each client's layers stand among the common slots when a run starts."""
    figure = go.Figure()
    for client, style in styles.items():
        figure.add_scatter(
            x=layers[client],
            y=[style.name] * len(layers[client]),
            mode="markers+lines",
            marker={"color": style.colour, "size": 11},
            line={"color": style.colour, "width": 1},
            customdata=list(range(1, len(layers[client]) + 1)),
            hovertemplate="layer %{customdata} at slot %{x:.2f}<extra></extra>",
        )
    finish(figure, "Common slot", "")
    figure.update_xaxes(range=[0.5, num_slots + 0.5], tickvals=round_ticks(num_slots))
    figure.update_yaxes(autorange="reversed", automargin=True)
    figure.update_layout(
        showlegend=False, hovermode="closest", height=max(160, 70 + 28 * len(styles)), margin_t=8
    )
    return figure


def _add_line(
    figure: go.Figure,
    style: ClientStyle,
    values: ByRound,
    *,
    width: float,
    scale: float,
    opacity: float = 1.0,
    legend: bool = True,
) -> None:
    """One client's line over rounds; without `legend` it is a faint companion of another."""
    if not values:
        return
    rounds = sorted(values)
    figure.add_scatter(
        x=rounds,
        y=[scale * values[number] for number in rounds],
        name=style.name,
        legendgroup=style.name,
        showlegend=legend,
        mode="lines+markers",
        opacity=opacity,
        line={"color": style.colour, "dash": style.dash if legend else "dot", "width": width},
        marker={"size": 6 if legend else 4},
        hovertemplate="%{y:.1f} %" if legend else "before training: %{y:.1f} %",
    )


def _add_mean(figure: go.Figure, values: Mapping[UUID, ByRound]) -> None:
    """The mean over the clients that have a value, per round."""
    rounds = sorted({number for line in values.values() for number in line})
    means = []
    for number in rounds:
        known = [line[number] for line in values.values() if number in line]
        means.append(100 * sum(known) / len(known))
    figure.add_scatter(
        x=rounds,
        y=means,
        name="mean of clients",
        mode="lines+markers",
        line={"color": GREY, "width": 5},
        marker={"size": 9},
        hovertemplate="%{y:.1f} %",
    )


def _legend(num_entries: int) -> dict[str, object]:
    """A line above the chart while it is short, else a list beside it that scrolls."""
    shared: dict[str, object] = {"title_text": "", "font_size": 12, "tracegroupgap": 2}
    if num_entries > FEW_CLIENTS:
        return shared
    return shared | {"orientation": "h", "yanchor": "bottom", "y": 1.02, "x": 0}


def _totals(values: Mapping[UUID, ByRound]) -> ByRound:
    totals: ByRound = {}
    for line in values.values():
        for number, value in line.items():
            totals[number] = totals.get(number, 0.0) + value
    return totals


def round_ticks(last: int) -> list[int]:
    """At most about 15 whole numbers from 1 to `last`."""
    return list(range(1, last + 1, max(1, -(-last // 15))))


def finish(figure: go.Figure, x_title: str, y_title: str) -> go.Figure:
    """What all charts share; a constant `uirevision` keeps zoom and hidden lines at a refresh."""
    figure.update_layout(
        height=HEIGHT,
        margin={"l": 8, "r": 8, "t": 40, "b": 8},
        hovermode="x unified" if len(figure.data) <= 2 * FEW_CLIENTS else "closest",
        hoverlabel={"namelength": 40},
        legend=_legend(len({trace.name for trace in figure.data})),
        uirevision="keep",
    )
    figure.update_xaxes(title_text=x_title)
    figure.update_yaxes(title_text=y_title)
    return figure
