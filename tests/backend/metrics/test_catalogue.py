"""Every measured value has a unit and a sentence."""

from backend.contracts.metric_catalogue import METRICS, REPORT_VALUES, MetricCatalogue
from backend.contracts.metrics import MetricName
from tests.factories import Caller


def test_every_metric_is_described() -> None:
    assert set(METRICS) == set(MetricName)
    for info in (*METRICS.values(), *REPORT_VALUES.values()):
        assert info.description.endswith(".")


def test_the_catalogue_is_served(viewer: Caller) -> None:
    catalogue = MetricCatalogue.model_validate(viewer.get("/metrics").json())
    assert [info.name for info in catalogue.metrics] == [name.value for name in METRICS]
    gap = next(info for info in catalogue.metrics if info.name == "aggregation_gap")
    assert (gap.unit.value, gap.higher_is_better) == ("difference of shares", True)
    assert "update_cosine" in {info.name for info in catalogue.report}
