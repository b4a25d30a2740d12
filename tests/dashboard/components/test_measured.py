"""The tables of everything that was measured."""

from types import SimpleNamespace
from typing import cast
from uuid import UUID

import pytest

from backend.contracts.enums import RoundKind
from backend.contracts.metric_catalogue import MetricInfo, Unit
from dashboard.components.live_history import LiveHistory
from dashboard.components.measured import report_table, value_text


def history(*reports: dict[str, float]) -> LiveHistory:
    rounds = {
        number: SimpleNamespace(round_number=number, kind=RoundKind.TRAIN, report=report)
        for number, report in enumerate(reports, start=1)
    }
    return cast(LiveHistory, SimpleNamespace(rounds=rounds))


def test_reports_name_the_group_that_a_value_belongs_to() -> None:
    reports = ({"num_groups": 2.0, "group_1/mean_rank": 3.5}, {"num_groups": 2.0}, {})
    table = report_table(history(*reports), ["north and south", "east alone"])
    table = table.set_index("Value")
    assert list(table.columns) == ["Among", "Round 1", "Round 2", "Meaning"]
    assert table.loc["num groups", "Round 1"] == "2"
    assert table.loc["num groups", "Among"] == "everybody"
    assert table.loc["mean rank", "Round 1"] == "3.50"
    assert table.loc["mean rank", "Among"] == "east alone"
    assert "mean over clients or layers" in table.loc["mean rank", "Meaning"]
    unknown = report_table(history(*reports), []).set_index("Value")
    assert unknown.loc["mean rank", "Among"] == "group 1"


def test_weights_of_pairs_stay_out_of_the_table() -> None:
    pair = f"mixing_weight/{UUID(int=1)}/{UUID(int=2)}"
    reports = ({pair: 1.0, f"group_0/{pair}": 1.0, "sketch_cosine": 0.5, "unheard_of": 0.25},)
    table = report_table(history(*reports), []).set_index("Value")
    assert list(table.index) == ["sketch cosine (cosine)", "unheard of (ratio)"]
    assert table.loc["unheard of (ratio)", "Round 1"] == "0.25"
    assert "Among" not in table.columns


@pytest.mark.parametrize(
    ("unit", "value", "text"),
    [(Unit.COUNT, 12345.0, "12,345"), (Unit.COUNT, 2.25, "2.25"), (Unit.RATIO, 1 / 3, "0.3333")],
)
def test_values_are_shown_in_their_unit(unit: Unit, value: float, text: str) -> None:
    assert value_text(MetricInfo(name="x", unit=unit, description=""), value) == text
