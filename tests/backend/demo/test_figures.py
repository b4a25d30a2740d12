import json
import math
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID

import pytest

from backend.contracts.base_models import Architecture, BaseModelRef
from backend.contracts.clients import Client
from backend.contracts.enums import Execution, StrategyName, TaskKind
from backend.contracts.metrics import MetricName
from backend.contracts.runs import MetricPoint
from backend.demo.figures import (
    ClientFigures,
    DemoReport,
    Gain,
    RunMetrics,
    client_figures,
    gains,
    verdict,
)
from backend.local.errors import DemoError

NOW = datetime(2026, 1, 1, tzinfo=UTC)
CLIENT = Client(
    id=UUID(int=1),
    name="north-clinic",
    execution=Execution.MANAGED,
    base_model=BaseModelRef(source="builtin", id="tiny_llama"),
    architecture=Architecture(family="llama", num_layers=4, hidden_size=128),
    lora_rank=4,
    lora_alpha=8,
    task=TaskKind.FILL_IN,
    dataset=None,
    created_at=NOW,
    last_seen_at=None,
)


def point(name: MetricName, round_number: int, value: float, scope: str = "round") -> MetricPoint:
    return MetricPoint(
        id=round_number,
        client_id=CLIENT.id,
        round_number=round_number,
        scope=scope,
        step=None,
        name=name,
        value=value,
        created_at=NOW,
    )


def figures(local_only: float, h2tune: float, alone: float | None = None) -> ClientFigures:
    return ClientFigures(
        name="a",
        family="llama",
        layers=4,
        hidden=128,
        rank=4,
        task=TaskKind.FILL_IN,
        accuracy={"initial": 0.0, "local_only": local_only, "h2tune": h2tune},
        sparsity=0.5,
        bytes_up_per_round=1,
        bytes_down_per_round=1,
        accuracy_same_shape_alone=alone,
    )


def test_figures_are_taken_from_the_right_rounds() -> None:
    baseline = RunMetrics(
        [
            point(MetricName.ACCURACY_BEFORE_TRAINING, 2, 0.3),
            point(MetricName.ACCURACY_BEFORE_TRAINING, 1, 0.1),
            point(MetricName.ACCURACY_BEFORE_TRAINING, 0, 0.9, scope="progress"),
            point(MetricName.ACCURACY_DELIVERED, 3, 0.4),
        ]
    )
    shared = RunMetrics(
        [
            point(MetricName.ACCURACY_DELIVERED, 3, 0.5),
            point(MetricName.SPARSITY, 1, 0.0),
            point(MetricName.SPARSITY, 2, 0.9375),
            point(MetricName.BYTES_UP, 1, 100),
            point(MetricName.BYTES_UP, 2, 200),
            point(MetricName.BYTES_DOWN, 1, 10),
            point(MetricName.BYTES_DOWN, 2, 20),
            point(MetricName.BYTES_DOWN, 3, 999),  # of the deliver round: not a training round
        ]
    )
    row = client_figures(CLIENT, baseline, shared, StrategyName.H2TUNE, rounds=2)
    assert row.accuracy == {"initial": 0.1, "local_only": 0.4, "h2tune": 0.5}
    assert (row.sparsity, row.bytes_up_per_round, row.bytes_down_per_round) == (0.9375, 150, 15)
    assert (row.family, row.layers, row.hidden, row.rank) == ("llama", 4, 128, 4)
    assert row.accuracy_same_shape_alone is None
    control = RunMetrics([point(MetricName.ACCURACY_DELIVERED, n, n / 10) for n in (2, 4, 3)])
    row = client_figures(CLIENT, baseline, shared, StrategyName.H2TUNE, 2, control)
    assert row.accuracy == {"initial": 0.1, "local_only": 0.4, "h2tune": 0.5}
    assert row.accuracy_same_shape_alone == 0.4


def test_a_missing_metric_is_an_error_and_not_a_zero() -> None:
    with pytest.raises(DemoError, match="no sparsity of north-clinic"):
        RunMetrics([]).last(CLIENT, MetricName.SPARSITY)


def test_a_large_difference_is_called_what_it_is() -> None:
    sentence = verdict([figures(0.2, 0.6)] * 3, StrategyName.H2TUNE, [100] * 3)
    assert "h2tune 60.0%, local_only 20.0%: h2tune beat local_only by +40.0 points" in sentence
    sentence = verdict([figures(0.6, 0.2)] * 3, StrategyName.H2TUNE, [100] * 3)
    assert "h2tune did not beat local_only by -40.0 points" in sentence


def test_a_small_difference_is_called_chance() -> None:
    # Two standard errors: 2 * sqrt(3 * 2 * 0.25 / 100) / 3 = 0.0816.
    assert math.isclose(2 * math.sqrt(3 * 2 * 0.25 / 100) / 3, 0.0816, abs_tol=1e-4)
    sentence = verdict([figures(0.5, 0.5)] * 3, StrategyName.H2TUNE, [100] * 3)
    assert "+0.0 points is within chance (about 8 points" in sentence
    assert "within chance" in verdict([figures(0.46, 0.54)] * 3, StrategyName.H2TUNE, [100] * 3)
    assert "beat" in verdict([figures(0.455, 0.545)] * 3, StrategyName.H2TUNE, [100] * 3)


SHARING = "h2tune is ahead because of sharing"
NOT_SHOWN = "this run does not."


def test_each_gain_has_the_error_of_its_own_two_arms() -> None:
    # h2tune .5 of 100 and 400 examples, local_only .2, the same shape alone .4: by hand
    # (.16 + .25) (1/100 + 1/400) / 2^2 and (.24 + .25) (1/100 + 1/400) / 2^2.
    found = gains([figures(0.2, 0.5, 0.4)] * 2, StrategyName.H2TUNE, [100, 400])
    assert [gain.over for gain in found] == ["local_only", "same_shape_alone"]
    assert [gain.difference for gain in found] == pytest.approx([0.3, 0.1])
    errors = [gain.standard_error for gain in found]
    assert errors == pytest.approx([math.sqrt(0.00128125), math.sqrt(0.00153125)])
    assert [gain.exceeds_chance for gain in found] == [True, True]  # .3 > .0716, .1 > .0783
    (only,) = gains([figures(0.2, 0.5)], StrategyName.H2TUNE, [100])
    assert only.over == "local_only"


@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_no_difference_is_never_more_than_chance(share: float) -> None:
    for gain in gains([figures(share, share, share)], StrategyName.H2TUNE, [100]):
        assert (gain.difference, gain.exceeds_chance) == (0.0, False)


def test_sharing_is_the_cause_only_where_both_arms_without_it_are_beaten_beyond_chance() -> None:
    # 3 x 100 examples: chance is about 8 points, as derived above.
    def said(local_only: float, h2tune: float, alone: float | None) -> str:
        return verdict([figures(local_only, h2tune, alone)] * 3, StrategyName.H2TUNE, [100] * 3)

    both = said(0.4, 0.6, 0.5)
    assert "h2tune beat local_only by +20.0 points" in both
    assert "The same shape trained alone: 50.0%. Sharing was worth +10.0 points, more than" in both
    assert both.endswith(f"exceed two standard errors of the test sets: {SHARING}.")
    shape = said(0.4, 0.6, 0.56)
    assert "beat local_only" in shape
    assert "Sharing was worth +4.0 points, within chance (chance is about 8)" in shape
    assert shape.endswith(NOT_SHOWN)
    for other in (
        said(0.58, 0.6, 0.4),  # the plain LoRA is as good
        said(0.4, 0.5, 0.65),  # sharing cost something
        said(0.7, 0.5, 0.7),  # both differences exceed chance, downwards
    ):
        assert SHARING not in other
        assert other.endswith(NOT_SHOWN)
    assert "Sharing was worth -15.0 points, more than chance" in said(0.4, 0.5, 0.65)
    without = said(0.4, 0.6, None)
    assert "shape" not in without
    assert "sharing" not in without


def test_the_report_has_exactly_the_promised_fields(tmp_path: Path) -> None:
    report = DemoReport(
        clients=[figures(0.1, 0.2, 0.15)],
        rounds=5,
        seconds_total=2.0,
        seconds_training=1.0,
        dashboard_url="http://127.0.0.1:8501",
        gains=[Gain(over="local_only", difference=1, standard_error=0.1, exceeds_chance=True)],
    )
    report.write(tmp_path / "report.json")
    written = json.loads((tmp_path / "report.json").read_text())
    assert list(written) == [
        *("clients", "rounds", "seconds_total", "seconds_training", "dashboard_url"),
        "gains",
    ]
    assert list(written["clients"][0]) == [
        *("name", "family", "layers", "hidden", "rank", "task", "accuracy", "sparsity"),
        *("bytes_up_per_round", "bytes_down_per_round", "accuracy_same_shape_alone"),
    ]
    assert written["clients"][0]["accuracy_same_shape_alone"] == 0.15
    assert list(written["gains"][0]) == [
        *("over", "difference", "standard_error", "exceeds_chance"),
    ]
    assert list(written["clients"][0]["accuracy"]) == ["initial", "local_only", "h2tune"]
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]
