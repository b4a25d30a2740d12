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
from backend.demo.figures import ClientFigures, DemoReport, RunMetrics, client_figures, verdict
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


def figures(local_only: float, h2tune: float) -> ClientFigures:
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


def test_the_report_has_exactly_the_promised_fields(tmp_path: Path) -> None:
    report = DemoReport(
        clients=[figures(0.1, 0.2)],
        rounds=5,
        seconds_total=2.0,
        seconds_training=1.0,
        dashboard_url="http://127.0.0.1:8501",
    )
    report.write(tmp_path / "report.json")
    written = json.loads((tmp_path / "report.json").read_text())
    assert list(written) == [
        *("clients", "rounds", "seconds_total", "seconds_training", "dashboard_url"),
    ]
    assert list(written["clients"][0]) == [
        *("name", "family", "layers", "hidden", "rank", "task", "accuracy", "sparsity"),
        *("bytes_up_per_round", "bytes_down_per_round"),
    ]
    assert list(written["clients"][0]["accuracy"]) == ["initial", "local_only", "h2tune"]
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]
