"""The comparison page and the form that starts one, on the platform in memory."""

from typing import Any
from uuid import uuid4

import pytest
from streamlit.testing.v1 import AppTest

from backend.contracts.common import FieldError
from backend.contracts.comparisons import ComparisonCreate, ComparisonResults
from backend.contracts.enums import Role, RunStatus, StrategyName
from backend.contracts.federations import FederationDetail
from backend.contracts.runs import RunCreate
from backend.contracts.strategies import info_of
from dashboard import pages
from dashboard.components.comparison_arms import label_of
from tests.dashboard.fake_comparisons import add_comparison
from tests.dashboard.fake_platform import FakePlatform, RefusalError, three_clinics
from tests.dashboard.reading import Open, text_of

ARMS = [{"strategy": {"name": "local_only"}}, {"strategy": {"name": "h2tune"}}]


def wanted(**changes: Any) -> ComparisonCreate:
    values = {"name": "Does it pay?", "arms": ARMS, "controls": True, "seeds": [0, 1], **changes}
    return ComparisonCreate.model_validate(values)


def button(app: AppTest, label: str) -> Any:
    return next(item for item in app.button if item.label == label)


def by_label(items: Any, label: str) -> Any:
    return next(item for item in items if item.label == label)


@pytest.fixture
def federation(platform: FakePlatform) -> FederationDetail:
    return three_clinics(platform)


def opened(open_page: Open, results: ComparisonResults) -> AppTest:
    return open_page(pages.COMPARISON, id=str(results.comparison.id))


# --- the page ----------------------------------------------------------------------------


def test_a_finished_comparison_shows_verdict_table_and_charts(
    platform: FakePlatform, federation: FederationDetail, open_page: Open
) -> None:
    results = add_comparison(platform, federation, wanted(), RunStatus.COMPLETED)
    app = opened(open_page, results)
    text = text_of(app)
    assert app.title[0].value == "Does it pay?"
    assert "12 of 12 runs have ended" in text
    assert ":green-badge[Transfer] h2tune gains +5.0 ± 2.0 points over local_only." in text
    assert "So far" not in text
    table = app.dataframe[0].value.set_index("Arm")
    controls = ["h2tune_permuted", "h2tune_noise", "h2tune_alone"]
    assert list(table.index) == ["local_only", "h2tune", "local_only_stopped_early", *controls]
    # .47 and .48 over two seeds: mean .475, standard deviation .00707
    assert table.loc["h2tune", "Mean"] == pytest.approx(47.5)
    assert table.loc["h2tune", "SD"] == pytest.approx(0.707, abs=1e-3)
    assert table.loc["h2tune", "north-clinic"] == "42.5 ± 0.7"
    assert table.loc["h2tune", "Seeds"] == "2 of 2"
    assert table.loc["h2tune", "Over best local"] == "+5.0 ± 2.0"
    assert table.loc["local_only", "Over best local"] == "–"
    assert table.loc["local_only", "Payload"] == "0 B"
    assert len(app.get("plotly_chart")) == 3


def test_a_column_that_nobody_measured_is_left_out(
    platform: FakePlatform, federation: FederationDetail, open_page: Open
) -> None:
    results = add_comparison(platform, federation, wanted(), RunStatus.COMPLETED)
    assert "After training" in opened(open_page, results).dataframe[0].value
    for arm in results.arms:
        arm.overall.after_training = None
    table = opened(open_page, results).dataframe[0].value
    assert "After training" not in table
    assert "Untrained" in table


def test_a_comparison_that_goes_on_says_how_far_it_is(
    platform: FakePlatform, federation: FederationDetail, open_page: Open
) -> None:
    results = add_comparison(platform, federation, wanted(), RunStatus.RUNNING)
    app = opened(open_page, results)
    text = text_of(app)
    assert "0 of 12 runs have ended" in text
    assert "12 running" in text
    assert "The verdict needs completed runs" in text
    assert set(app.dataframe[0].value["Seeds"]) == {"0 of 2"}
    assert app.dataframe[1].value.loc[0, "seed 1"] == "round 1 of 5"
    assert len(app.get("plotly_chart")) == 0


def test_failed_runs_say_why(
    platform: FakePlatform, federation: FederationDetail, open_page: Open
) -> None:
    results = add_comparison(platform, federation, wanted(), RunStatus.COMPLETED)
    results.runs[2] = results.runs[2].model_copy(
        update={"status": RunStatus.FAILED, "error": "north-clinic failed: no memory"}
    )
    text = text_of(opened(open_page, results))
    assert "h2tune, seed 0: north-clinic failed: no memory" in text


def test_a_comparison_is_cancelled_after_a_question(
    platform: FakePlatform, federation: FederationDetail, open_page: Open
) -> None:
    results = add_comparison(platform, federation, wanted(), RunStatus.RUNNING)
    app = opened(open_page, results)
    button(app, "Yes, cancel it").click().run()
    assert platform.comparisons[results.comparison.id].comparison.status is RunStatus.CANCELLED
    assert not any(item.label == "Yes, cancel it" for item in app.button)


def test_viewers_see_and_do_nothing(
    platform: FakePlatform, federation: FederationDetail, open_page: Open
) -> None:
    platform.user = platform.user.model_copy(update={"role": Role.VIEWER})
    results = add_comparison(platform, federation, wanted(), RunStatus.RUNNING)
    app = opened(open_page, results)
    assert app.title[0].value == "Does it pay?"
    assert not any("cancel" in item.label for item in app.button)
    app = open_page(pages.FEDERATION, id=str(federation.id))
    assert not any(item.label == "Start comparison" for item in app.button)


def test_an_unknown_comparison_is_a_sentence(open_page: Open) -> None:
    assert "There is nothing with id" in text_of(open_page(pages.COMPARISON, id=str(uuid4())))
    assert "names no comparison" in text_of(open_page(pages.COMPARISON, id="nonsense"))


def test_arms_in_groups_are_labelled(
    platform: FakePlatform, federation: FederationDetail, open_page: Open
) -> None:
    arms = [*ARMS, {"strategy": {"name": "fedit", "group_by": "architecture"}}]
    results = add_comparison(
        platform, federation, wanted(arms=arms, controls=False), RunStatus.COMPLETED
    )
    app = opened(open_page, results)
    for table in app.dataframe[:2]:
        assert "fedit (in groups)" in list(table.value["Arm"])
    assert ":green-badge[Transfer] fedit (in groups) gains" in text_of(app)


# --- the form ----------------------------------------------------------------------------


def test_a_comparison_is_created_and_started(
    platform: FakePlatform, federation: FederationDetail, open_page: Open
) -> None:
    app = open_page(pages.FEDERATION, id=str(federation.id))
    by_label(app.text_input, "Name").input("Winter")
    by_label(app.text_input, "Seeds").input("3, 4 5")
    app.run()
    assert "6 arms times 3 seeds: 18 runs" in text_of(app)
    button(app, "Start comparison").click().run()
    assert not app.exception
    [results] = platform.comparisons.values()
    comparison = results.comparison
    assert (comparison.name, comparison.seeds, comparison.status) == (
        "Winter",
        [3, 4, 5],
        RunStatus.QUEUED,
    )
    names = [arm.name for arm in comparison.arms]
    controls = ["h2tune_alone", "h2tune_noise", "h2tune_permuted"]
    assert sorted(names) == ["h2tune", *controls, "local_only", "local_only_stopped_early"]
    assert app.title[0].value == "Winter"


def choose_fedit(app: AppTest) -> None:
    strategies = by_label(app.multiselect, "Strategies")
    strategies.set_value([*strategies.value, info_of(StrategyName.FEDIT)]).run()


def test_strategies_that_need_equal_models_share_inside_groups(
    platform: FakePlatform, federation: FederationDetail, open_page: Open
) -> None:
    app = open_page(pages.FEDERATION, id=str(federation.id))
    choose_fedit(app)
    button(app, "Start comparison").click().run()
    [results] = platform.comparisons.values()
    assert "fedit (in groups)" in [arm.title for arm in results.comparison.arms]


def test_variants_of_a_strategy_are_arms_with_labels_and_parameters(
    platform: FakePlatform, federation: FederationDetail, open_page: Open
) -> None:
    app = open_page(pages.FEDERATION, id=str(federation.id))
    by_label(app.toggle, "Add local-only and negative controls").set_value(False)
    by_label(app.number_input, "Variants of H2Tune").set_value(2).run()
    app.text_input(key="comparison.h2tune.1.label").input("No Gauge!")
    app.selectbox(key="comparison.h2tune.1.gauge").set_value("none")
    app.number_input(key="comparison.h2tune.1.training.learning_rate").set_value(0.002).run()
    button(app, "Start comparison").click().run()
    assert not app.exception
    [results] = platform.comparisons.values()
    plain, local, other = sorted(results.comparison.arms, key=lambda arm: len(arm.name))
    assert [plain.name, local.name, other.name] == ["h2tune", "local_only", "h2tune_no_gauge"]
    assert getattr(other.strategy, "gauge", None) == "none"
    assert (plain.training.learning_rate, other.training.learning_rate) == (None, 0.002)


def test_the_local_baseline_is_tuned_by_several_learning_rates(
    platform: FakePlatform, federation: FederationDetail, open_page: Open
) -> None:
    app = open_page(pages.FEDERATION, id=str(federation.id))
    by_label(app.toggle, "Local baseline at several learning rates").set_value(True).run()
    button(app, "Start comparison").click().run()
    [results] = platform.comparisons.values()
    rates = {arm.name: arm.training.learning_rate for arm in results.comparison.arms}
    local = {name: rate for name, rate in rates.items() if name.startswith("local_only")}
    # 3e-3 is what all arms train at: the plain arm has it already
    plain = {"local_only": None, "local_only_lr_3e_4": 3e-4, "local_only_lr_1e_3": 1e-3}
    assert local == plain | {f"{name}_stopped_early": rate for name, rate in plain.items()}
    guards = {arm.name: getattr(arm.strategy, "guard", None) for arm in results.comparison.arms}
    assert {guards[name] for name in plain} == {"off"}
    assert {guards[name] for name in local.keys() - plain.keys()} == {"validation"}


def test_each_sharing_arm_may_run_once_more_with_privacy(
    platform: FakePlatform, federation: FederationDetail, open_page: Open
) -> None:
    app = open_page(pages.FEDERATION, id=str(federation.id))
    by_label(app.toggle, "Add local-only and negative controls").set_value(False)
    by_label(app.toggle, "Add each sharing arm once more with differential privacy").set_value(
        True
    ).run()
    assert "the privacy loss of every client is at most epsilon" in text_of(app)
    assert "publish no measurements give an arm without any accuracy" in text_of(app)
    app.toggle(key="comparison.privacy.publish_measurements").set_value(True).run()
    button(app, "Start comparison").click().run()
    [results] = platform.comparisons.values()
    noised = {arm.name: arm.privacy.differential_privacy is not None
              for arm in results.comparison.arms}  # fmt: skip
    assert noised == {"h2tune": False, "h2tune_private": True, "local_only": False}


def test_strategies_that_offer_no_privacy_say_why(
    federation: FederationDetail, open_page: Open
) -> None:
    app = open_page(pages.FEDERATION, id=str(federation.id))
    strategies = by_label(app.multiselect, "Strategies")
    strategies.set_value([*strategies.value, info_of(StrategyName.FLORA)])
    by_label(app.toggle, "Add each sharing arm once more with differential privacy").set_value(
        True
    ).run()
    assert "needs more of each client's update than a weighted sum" in text_of(app)


@pytest.mark.parametrize(
    ("typed", "label"), [("No Gauge!", "no_gauge"), ("lr 3e-4", "lr_3e_4"), (" ", None)]
)
def test_labels_are_put_into_their_form(typed: str, label: str | None) -> None:
    assert label_of(typed) == label


def test_without_groups_such_a_strategy_stops_the_start(
    federation: FederationDetail, open_page: Open
) -> None:
    app = open_page(pages.FEDERATION, id=str(federation.id))
    choose_fedit(app)
    by_label(app.toggle, "Share inside groups where needed").set_value(False).run()
    assert "fedit: Client" in text_of(app)
    assert button(app, "Start comparison").disabled


def test_wrong_seeds_are_told_and_stop_the_start(
    federation: FederationDetail, open_page: Open
) -> None:
    app = open_page(pages.FEDERATION, id=str(federation.id))
    by_label(app.text_input, "Seeds").input("1, 1").run()
    assert "seed 1 is named twice" in text_of(app)
    assert button(app, "Start comparison").disabled


def test_what_the_platform_refuses_is_told(
    platform: FakePlatform, federation: FederationDetail, open_page: Open
) -> None:
    platform.run_refusal = RefusalError(
        409, "dataset_missing", "No data set yet: north-clinic.",
        [FieldError(field="arms.0", message="no data")],
    )  # fmt: skip
    app = open_page(pages.FEDERATION, id=str(federation.id))
    button(app, "Start comparison").click().run()
    assert "No data set yet: north-clinic." in text_of(app)
    assert not platform.comparisons


def test_comparisons_are_listed_and_their_runs_are_not(
    platform: FakePlatform, federation: FederationDetail, open_page: Open
) -> None:
    results = add_comparison(platform, federation, wanted(), RunStatus.COMPLETED)
    run = platform.add_run(federation, RunCreate(strategy=results.comparison.arms[0].strategy))
    platform.change(run, comparison_id=results.comparison.id, arm="local_only")
    text = text_of(open_page(pages.FEDERATION, id=str(federation.id)))
    assert "6 arms, 2 seeds, 12 of 12 runs ended" in text
    assert "No run yet" in text
