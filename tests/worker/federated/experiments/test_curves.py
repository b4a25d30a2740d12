"""Gains over what settings vary, from lines that a grid has written."""

import xml.etree.ElementTree as ElementTree

import pytest

from tests.worker.federated.experiments.lines import line
from worker.federated.experiments.curves import curves, picture, table

RECORDS = [
    *(
        line(setting, "local_only", seed, 0.4 + seed / 10)
        for setting in ("n=10", "n=20,k=3")
        for seed in (0, 1)
    ),
    *(line("n=10", "h2tune", seed, 0.5 + seed / 10) for seed in (0, 1)),
    line("n=20,k=3", "h2tune", 0, 0.5),
    line("n=20,k=3", "h2tune", 0, 0.9, client="b"),
    line("plain", "h2tune", 0, 0.5),
    line("plain", "local_only", 0, 0.5),
]


def test_a_setting_lies_on_every_curve_that_its_name_says() -> None:
    found = curves(RECORDS, "h2tune", "local_only")
    assert {quantity: list(points) for quantity, points in found.items()} == {
        "n": [10.0, 20.0],
        "k": [3.0],
    }
    assert found["n"][10.0].mean == pytest.approx(0.1)
    assert found["n"][10.0].half_width == pytest.approx(0, abs=1e-9)
    assert found["k"][3.0] == found["n"][20.0]
    assert found["k"][3.0].mean == pytest.approx(0.3)  # of two clients, one seed in common
    assert found["k"][3.0].half_width is None


def test_the_picture_has_a_panel_per_quantity_and_a_point_per_value() -> None:
    found = {"h2tune": curves(RECORDS, "h2tune", "local_only")}
    root = ElementTree.fromstring(picture(found, "local_only"))  # noqa: S314 - our own text
    said = [element.text for element in root.iter() if element.text]
    assert {"n", "k", "10", "20", "3", "h2tune", "+0.0"} <= set(said)
    circles = [element for element in root.iter() if element.tag.endswith("circle")]
    assert len(circles) == 3 + 1  # and one in the legend
    assert "| n 10 | +0.100 ± 0.000 |" in table(found)
