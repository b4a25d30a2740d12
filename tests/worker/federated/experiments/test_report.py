"""What the report of an experiment says."""

from pathlib import Path
from xml.etree import ElementTree

import pytest

from backend.contracts.params.h2tune import H2TuneParams
from tests.worker.federated.experiments.lines import line
from worker.federated.experiments.arm_kinds import FederatedArm, UntrainedArm
from worker.federated.experiments.chart import write_chart
from worker.federated.experiments.report import markdown, verdict

SVG = "{http://www.w3.org/2000/svg}"


@pytest.mark.parametrize(
    ("shared", "permuted", "expected"),
    [
        ([0.80, 0.81, 0.79], [0.70, 0.71, 0.69], "**Transfer**"),
        ([0.80, 0.81, 0.79], [0.82, 0.83, 0.81], "**Shrinkage, not transfer**"),
        ([0.80, 0.60, 0.79], [0.70, 0.71, 0.69], "No gain from sharing shown"),
        ([0.60, 0.61, 0.59], [0.50, 0.51, 0.49], "No gain from sharing shown"),
    ],
)
def test_a_gain_that_survives_the_control_is_no_transfer(
    shared: list[float], permuted: list[float], expected: str
) -> None:
    means = {
        "h2tune": dict(enumerate(shared)),
        "h2tune_permuted": dict(enumerate(permuted)),
        "local_lora": {0: 0.70, 1: 0.71, 2: 0.69},
    }
    assert expected in verdict(means, "h2tune", "local_lora")


def test_an_arm_with_a_control_of_its_own_is_judged_by_it() -> None:
    means = {"untrained": 0.3, "h2tune": 0.3, "h2tune_permuted": 0.1} | {
        "h2tune_relevance": 0.7,
        "h2tune_relevance_permuted": 0.5,
        "h2tune_other": 0.8,
    }
    records = [
        line("s", arm, seed, value + seed / 100)
        for arm, value in means.items()
        for seed in (0, 1, 2)
    ]
    arms = [UntrainedArm()] + [
        FederatedArm(name=arm, strategy=H2TuneParams()) for arm in means if arm != "untrained"
    ]
    report = markdown(records, arms, "s")
    row = {
        cells[1].strip(): cells[7].strip()
        for text in report.splitlines()
        if len(cells := text.split("|")) > 7
    }
    assert row["h2tune_relevance"] == "+0.200 ± 0.000"  # its own
    assert row["h2tune_other"] == "+0.700 ± 0.000"  # that of h2tune
    assert "**No gain from sharing shown**. h2tune gains +0.000 ± 0.000 over untrained" in report
    assert (
        "**Transfer**: both intervals exclude zero. h2tune_relevance gains +0.400 ± 0.000" in report
    )
    assert "h2tune_other gains" not in report


def test_a_chart_shows_every_seed_of_every_arm(tmp_path: Path) -> None:
    path = tmp_path / "chart.svg"
    write_chart(path, "a < b", {"h2tune": {0: 0.5, 1: 0.6}, "local_lora": {0: 0.4}})
    root = ElementTree.parse(path).getroot()  # noqa: S314 - written just now
    assert len(root.findall(f"{SVG}circle")) == 3
    texts = [text.text for text in root.findall(f"{SVG}text")]
    assert {"a < b", "h2tune", "local_lora", "0.550", "0.400"} <= set(texts)
