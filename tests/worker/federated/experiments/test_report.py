"""What the report of an experiment says."""

from pathlib import Path
from xml.etree import ElementTree

import pytest

from worker.federated.experiments.chart import write_chart
from worker.federated.experiments.report import verdict

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
    assert expected in verdict(means, "local_lora")


def test_a_chart_shows_every_seed_of_every_arm(tmp_path: Path) -> None:
    path = tmp_path / "chart.svg"
    write_chart(path, "a < b", {"h2tune": {0: 0.5, 1: 0.6}, "local_lora": {0: 0.4}})
    root = ElementTree.parse(path).getroot()  # noqa: S314 - written just now
    assert len(root.findall(f"{SVG}circle")) == 3
    texts = [text.text for text in root.findall(f"{SVG}text")]
    assert {"a < b", "h2tune", "local_lora", "0.550", "0.400"} <= set(texts)
