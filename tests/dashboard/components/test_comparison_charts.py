"""Charts of comparisons, as far as numbers go."""

from typing import Any

import pytest

from backend.contracts.comparisons import Arm, ArmResult, ComparisonCreate
from backend.contracts.enums import StrategyName
from dashboard.components import comparison_charts as charts
from tests.dashboard.fake_comparisons import arm_result
from tests.dashboard.fake_platform import FakePlatform, three_clinics


def results(count: int | None = None) -> list[ArmResult]:
    """Every strategy with two seeds and with h2tune's controls, local_only first."""
    create = ComparisonCreate.model_validate(
        {
            "name": "all",
            "arms": [{"strategy": {"name": name.value}} for name in StrategyName],
            "controls": True,
            "seeds": [0, 1],
        }
    )
    federation = three_clinics(FakePlatform())
    arms = [Arm(name=arm.name, strategy=arm.strategy) for arm in create.all_arms()][:count]
    return [arm_result(arm, federation, [0, 1], place) for place, arm in enumerate(arms)]


def by_name(figure: Any) -> dict[str, Any]:
    return {trace.name: trace for trace in figure.data}


def test_every_arm_looks_different_and_controls_are_grey() -> None:
    arms = results()
    styles = charts.arm_styles(arms)
    candidates = [styles[arm.name] for arm in arms if not arm.is_control]
    assert len(candidates) >= 13
    assert len(set(candidates)) == len(candidates)
    controls = {styles[arm.name] for arm in arms if arm.is_control}
    assert controls == {charts.ArmStyle(charts.GREY, charts.CONTROL_SYMBOL)}


def test_bytes_are_logarithmic_and_nothing_stands_left() -> None:
    arms = results(2)
    assert arms[0].name == "local_only"
    figure = charts.bytes_figure(arms, charts.arm_styles(arms))
    traces = by_name(figure)
    # local_only sends nothing; the second arm sends 20,000 bytes up and as many down.
    assert traces[arms[1].title].x == (40_000.0,)
    assert traces["local_only"].x == (4_000.0,)
    assert figure.layout.xaxis.type == "log"
    assert figure.layout.xaxis.ticktext[0] == "nothing"
    assert figure.layout.xaxis.tickvals[0] == 4_000.0
    # .45 and .46 over two seeds
    assert traces["local_only"].y == (pytest.approx(45.5),)
    assert traces["local_only"].error_y.array == (pytest.approx(0.70711, abs=1e-4),)
    front = traces["Pareto front"]
    assert tuple(front.x) == (4_000.0, 40_000.0)
    assert front.line.shape == "hv"


def test_a_comparison_in_which_nothing_was_sent_has_a_chart() -> None:
    arms = results(1)
    figure = charts.bytes_figure(arms, charts.arm_styles(arms))
    assert by_name(figure)["local_only"].x == (1.0,)


def test_seconds_are_linear() -> None:
    arms = results(3)
    figure = charts.seconds_figure(arms, charts.arm_styles(arms))
    assert [by_name(figure)[arm.title].x for arm in arms] == [(10.0,), (11.0,), (12.0,)]
    assert figure.layout.xaxis.type is None


def test_each_client_has_a_row_in_which_no_two_arms_meet() -> None:
    arms = results()
    figure = charts.client_figure(arms, charts.arm_styles(arms))
    names = [client.client_name for client in arms[0].clients]
    assert list(figure.layout.yaxis.ticktext) == names
    for row in range(len(names)):
        heights = [trace.y[row] for trace in figure.data]
        assert len(set(heights)) == len(arms)
        assert all(row - 0.5 < height < row + 0.5 for height in heights)
    # An arm needs about as many pixels as its dot is high.
    assert figure.layout.height >= charts.DOT_HEIGHT * len(arms) * len(names)


def test_arms_without_a_result_are_left_out() -> None:
    arms = results(2)
    federation = three_clinics(FakePlatform())
    arm = Arm(name=arms[1].name, strategy=arms[1].strategy)
    waiting = [arms[0], arm_result(arm, federation, [], 1)]
    styles = charts.arm_styles(waiting)
    for draw in (charts.bytes_figure, charts.seconds_figure, charts.client_figure):
        assert waiting[1].title not in by_name(draw(waiting, styles))
