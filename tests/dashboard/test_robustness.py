"""Asking for a robust rule, and reading who helps and who is unusual."""

import pytest
from streamlit.testing.v1 import AppTest

from backend.contracts.enums import RunStatus, StrategyName
from backend.contracts.metrics import MetricName
from backend.contracts.params.lora import FedItParams
from backend.contracts.robustness import Robustness
from backend.contracts.runs import RunCreate
from backend.contracts.strategies import info_of
from dashboard import pages
from dashboard.components.contributions import remark
from dashboard.components.robust_arms import robust_twins
from dashboard.components.robustness_form import RULE_TITLES
from tests.dashboard.fake_platform import FakePlatform
from tests.dashboard.reading import Open, text_of


def by_label(items, label: str):
    return next(item for item in items if item.label == label)


def filled(platform: FakePlatform, open_page: Open) -> AppTest:
    clients = [platform.add_client(name) for name in ("north", "south", "east", "west", "far")]
    app = open_page(pages.NEW_FEDERATION)
    by_label(app.text_input, "Name").input("Five clinics")
    app.multiselect[0].set_value(clients)
    by_label(app.selectbox, "Strategy").set_value(info_of(StrategyName.FEDIT)).run()
    by_label(app.selectbox, "Rule").set_value("multi_krum")
    return app.run()


def test_the_form_says_what_a_rule_takes_and_sends_it(
    platform: FakePlatform, open_page: Open
) -> None:
    app = filled(platform, open_page)
    assert "Every round needs at least 5 updates for this" in text_of(app)
    by_label(app.number_input, "Hostile clients").set_value(2)
    by_label(app.number_input, "Largest norm").set_value(30.0)
    app.run()
    assert "at least 7 updates" in text_of(app)
    by_label(app.number_input, "Hostile clients").set_value(1).run()
    by_label(app.button, "Create and start").click().run()
    run, baseline = platform.runs
    assert run.robustness == Robustness(rule="multi_krum", num_hostile=1, max_update_norm=30)
    assert baseline.strategy.name is StrategyName.LOCAL_ONLY
    assert baseline.robustness == Robustness()


def test_a_strategy_without_common_numbers_says_so_in_the_form(
    platform: FakePlatform, open_page: Open
) -> None:
    app = filled(platform, open_page)
    by_label(app.selectbox, "Strategy").set_value(info_of(StrategyName.HETLORA)).run()
    assert "HetLoRA does not add up matrices of equal shape" in text_of(app)


def test_a_run_shows_its_scores_and_marks_who_is_unusual(
    platform: FakePlatform, open_page: Open
) -> None:
    clients = [platform.add_client(name) for name in ("north", "south", "far")]
    federation = platform.add_federation("Three clinics", clients)
    settings = Robustness(rule="median")
    run = platform.add_run(
        federation, RunCreate(strategy=FedItParams(), robustness=settings), RunStatus.RUNNING
    )
    platform.play_round(run, 1)
    assert "Who helps, and who is unusual" not in text_of(open_page(pages.RUN, id=str(run.id)))
    outliers, contributions, kept = (-0.2, 0.31, 45.67), (0.8, -0.25, -0.9), (1.0, 0.6, 0.01)
    for client, *values in zip(clients, outliers, contributions, kept, strict=True):
        names = (MetricName.OUTLIER_SCORE, MetricName.CONTRIBUTION, MetricName.KEPT_SHARE)
        for name, value in zip(names, values, strict=True):
            platform.measure(run, client, 1, name, value)
    app = open_page(pages.RUN, id=str(run.id))
    assert "Unusual in its newest round: far" in text_of(app)
    assert "Unusual is not hostile" in text_of(app)
    table = next(item.value for item in app.dataframe if "Outlier score" in item.value.columns)
    assert list(table["Client"]) == ["far", "south", "north"]
    assert list(table["Outlier score"]) == [45.7, 0.3, -0.2]
    assert list(table["Kept"]) == ["1.0 %", "60.0 %", "100.0 %"]
    assert list(table["Remark"]) == ["unusual", "pulls the other way", ""]


@pytest.mark.parametrize(
    ("outlier", "contribution", "num_clients", "words"),
    [
        (3.6, 0.9, 5, "unusual"),
        (3.6, 0.9, 4, ""),
        (10.6, 0.9, 4, "unusual"),
        (3.5, -0.2, 5, "pulls the other way"),
        (3.5, -0.1, 5, ""),
        (None, 0.5, 5, ""),
        (-9.0, 0.0, 5, ""),
    ],
)
def test_a_remark_follows_from_the_scores(
    outlier: float | None, contribution: float, num_clients: int, words: str
) -> None:
    assert remark(outlier, contribution, num_clients) == words


def test_every_rule_has_a_name_for_people() -> None:
    assert set(RULE_TITLES) == set(Robustness.model_json_schema()["properties"]["rule"]["enum"])


def test_arms_of_a_comparison_get_robust_twins_where_that_is_possible() -> None:
    arms = [
        {"strategy": {"name": "fedit"}, "label": None},
        {"strategy": {"name": "hetlora"}, "label": None},
        {"strategy": {"name": "local_only"}},
        {"strategy": {"name": "h2tune"}, "label": "v2"},
    ]
    twins, reasons = robust_twins(arms, Robustness(rule="median"), 3)
    assert [(twin["strategy"]["name"], twin["label"]) for twin in twins] == [
        ("fedit", "median"),
        ("h2tune", "v2_median"),
    ]
    assert all(twin["robustness"]["rule"] == "median" for twin in twins)
    assert len(reasons) == 1
    assert "HetLoRA" in reasons[0]
    assert robust_twins(arms, Robustness(rule="median"), 2)[0] == []
