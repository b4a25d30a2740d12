"""The tables of everything that was measured."""

from types import SimpleNamespace
from typing import cast

import pytest

from backend.contracts.metric_catalogue import MetricInfo, Unit
from dashboard.components.live_history import LiveHistory
from dashboard.components.measured import report_table, value_text


def test_reports_name_the_group_that_a_value_belongs_to() -> None:
    rounds = {
        1: SimpleNamespace(round_number=1, report={"num_groups": 2.0, "group_1/mean_rank": 3.5}),
        2: SimpleNamespace(round_number=2, report={"num_groups": 2.0, "unheard_of": 0.25}),
        3: SimpleNamespace(round_number=3, report={}),
    }
    table = report_table(cast(LiveHistory, SimpleNamespace(rounds=rounds))).set_index("Value")
    assert list(table.columns) == ["Round 1", "Round 2", "Meaning"]
    assert table.loc["num groups", "Round 1"] == "2"
    assert table.loc["group 1: mean rank", "Round 1"] == "3.50"
    assert "mean over clients or layers" in table.loc["group 1: mean rank", "Meaning"]
    assert table.loc["unheard of (ratio)", "Round 2"] == "0.25"


@pytest.mark.parametrize(
    ("unit", "value", "text"),
    [(Unit.COUNT, 12345.0, "12,345"), (Unit.COUNT, 2.25, "2.25"), (Unit.RATIO, 1 / 3, "0.3333")],
)
def test_values_are_shown_in_their_unit(unit: Unit, value: float, text: str) -> None:
    assert value_text(MetricInfo(name="x", unit=unit, description=""), value) == text
