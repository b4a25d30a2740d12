from uuid import UUID

import pytest

from dashboard.components import charts
from dashboard.components.delivered import Pair

NORTH, SOUTH = UUID(int=1), UUID(int=2)
STYLES = charts.client_styles({NORTH: "north", SOUTH: "south"})


def test_fifty_clients_are_told_apart_and_keep_their_look() -> None:
    names = {UUID(int=i): f"client {i:02d}" for i in range(50)}
    styles = charts.client_styles(names)
    assert len({(style.colour, style.dash) for style in styles.values()}) == 50
    assert charts.client_styles(dict(reversed(names.items()))) == styles


def test_accuracy_is_in_percent_with_stars_behind_the_last_round() -> None:
    figure = charts.accuracy_figure(
        STYLES,
        num_rounds=2,
        before={NORTH: {1: 0.1, 2: 0.3}},
        after={NORTH: {2: 0.5, 1: 0.25}},
        delivered={NORTH: 0.625},
        baseline_mean=0.375,
    )
    after, before, star, baseline = figure.data
    assert (tuple(after.x), tuple(after.y)) == ((1, 2), (25.0, 50.0))
    assert (tuple(before.x), tuple(before.y)) == ((1, 2), (10.0, 30.0))
    assert (tuple(star.x), tuple(star.y)) == ((3,), (62.5,))
    assert {after.line.color, before.line.color, star.marker.color} == {STYLES[NORTH].colour}
    assert [trace.showlegend for trace in figure.data] == [True, False, False, None]
    assert figure.layout.xaxis.title.text == "Round"
    assert figure.layout.yaxis.title.text == "Test accuracy (%)"
    assert figure.layout.xaxis.ticktext == ("1", "2", "delivered")
    assert (baseline.name, tuple(baseline.y)) == ("local only, mean 37.5 %", (37.5, 37.5))


def test_many_clients_get_their_mean_on_top() -> None:
    names = {UUID(int=i): f"client {i}" for i in range(20)}
    after = {client: {1: i / 100} for i, client in enumerate(names)}
    after[UUID(int=0)][2] = 0.5  # only one client has finished round 2
    figure = charts.accuracy_figure(charts.client_styles(names), 2, {}, after, {}, None)
    mean = figure.data[-1]
    assert mean.name == "mean of clients"
    assert tuple(mean.y) == (pytest.approx(9.5), 50.0)


def test_a_refresh_keeps_zoom_and_hidden_lines() -> None:
    one = charts.loss_figure(STYLES, {NORTH: [(1, 2.0)]}, "Round")
    two = charts.loss_figure(STYLES, {NORTH: [(1, 2.0), (2, 1.5)]}, "Round")
    assert one.layout.uirevision == two.layout.uirevision is not None


def test_losses_keep_their_unit() -> None:
    figure = charts.loss_figure(STYLES, {SOUTH: [(1, 2.0), (2, 1.5)]}, "Round")
    assert tuple(figure.data[0].y) == (2.0, 1.5)
    assert figure.layout.xaxis.title.text == "Round"
    assert figure.layout.yaxis.title.text == "Training loss (nats per token)"


def test_a_single_loss_is_seen_and_many_are_a_line() -> None:
    single = charts.loss_figure(STYLES, {SOUTH: [(1, 2.0)]}, "Step")
    many = charts.loss_figure(STYLES, {SOUTH: [(step, 2.0) for step in range(100)]}, "Step")
    assert (single.data[0].mode, many.data[0].mode) == ("lines+markers", "lines")


def test_sparsity_is_in_percent_on_a_fixed_axis() -> None:
    figure = charts.sparsity_figure(STYLES, 3, {NORTH: {1: 0.75}})
    assert tuple(figure.data[0].y) == (75.0,)
    assert tuple(figure.layout.yaxis.range) == (-3, 103)


def test_traffic_is_stacked_in_the_unit_of_the_larger_total() -> None:
    figure = charts.traffic_figure(
        STYLES, up={NORTH: {1: 512}, SOUTH: {1: 512}}, down={NORTH: {1: 1024}, SOUTH: {1: 1536}}
    )
    assert [tuple(bar.y) for bar in figure.data] == [(0.5,), (0.5,), (1.0,), (1.5,)]
    assert figure.layout.yaxis.title.text == "Payload per round (KiB)"
    assert figure.layout.barmode == "stack"
    assert [bar.showlegend for bar in figure.data] == [True, True, False, False]


def test_traffic_of_many_clients_is_their_total() -> None:
    names = {UUID(int=i): f"client {i}" for i in range(20)}
    values = {client: {1: 1024} for client in names}
    figure = charts.traffic_figure(charts.client_styles(names), values, values)
    assert [tuple(bar.y) for bar in figure.data] == [(20.0,), (20.0,)]
    assert figure.data[0].name == "all 20 clients"


def test_cumulative_traffic_adds_up_and_shows_the_reference() -> None:
    mib = 2**20
    figure = charts.cumulative_traffic_figure(
        up={2: mib, 1: mib}, down={1: 2 * mib, 2: 2 * mib}, lora={1: 10 * mib, 2: 10 * mib}
    )
    lines = {trace.name: tuple(trace.y) for trace in figure.data}
    assert lines == {
        "Sent (up)": (1, 2),
        "Received (down)": (2, 4),
        "Reference: sending LoRA A + B up": (10, 20),
    }
    assert figure.layout.yaxis.title.text == "Payload since the start (MiB)"


def test_no_traffic_at_all_is_still_a_chart() -> None:
    assert not charts.cumulative_traffic_figure({}, {}, {}).data


def test_gains_are_percentage_points_coloured_by_sign() -> None:
    figure = charts.gain_figure(STYLES, {NORTH: Pair(0.6, 0.5), SOUTH: Pair(0.25, 0.5)})
    [bars] = figure.data
    assert tuple(bars.x) == (pytest.approx(10), pytest.approx(-25))
    assert tuple(bars.y) == ("north", "south")
    assert bars.marker.color[0] != bars.marker.color[1]
    assert tuple(bars.text) == ("+10.0", "-25.0")
    # The numbers stand outside of the bars, which end 8 % of the longest before the edge.
    assert tuple(figure.layout.xaxis.range) == (pytest.approx(-27), pytest.approx(12))


def test_bars_of_no_gain_at_all_have_an_axis() -> None:
    figure = charts.gain_figure(STYLES, {NORTH: Pair(0.5, 0.5)})
    assert tuple(figure.layout.xaxis.range) == (0, 1)


def test_comparison_has_a_bar_per_run_and_client() -> None:
    figure = charts.comparison_figure(
        [("H2Tune", {"south": 0.5, "north": 0.25}), ("Local only", {"north": 0.125})]
    )
    assert [(bar.name, tuple(bar.x), tuple(bar.y)) for bar in figure.data] == [
        ("H2Tune", ("north", "south"), (25.0, 50.0)),
        ("Local only", ("north",), (12.5,)),
    ]


def test_layer_map_marks_every_layer() -> None:
    figure = charts.layer_map_figure(STYLES, {NORTH: [1.0, 3.0], SOUTH: [1.0, 2.0, 3.0]}, 3)
    assert [tuple(trace.x) for trace in figure.data] == [(1, 3), (1, 2, 3)]
