"""Asking for differential privacy and seeing what it costs."""

import pytest
from streamlit.testing.v1 import AppTest

from backend.contracts.enums import RoundStatus, RunStatus, SecureStep, StrategyName
from backend.contracts.metrics import MetricName
from backend.contracts.params.lora import FedItParams
from backend.contracts.privacy import DifferentialPrivacy, PrivacySettings, SecureAggregation
from backend.contracts.runs import RunCreate, SecureProgress
from backend.contracts.strategies import info_of
from dashboard import pages
from dashboard.components.formatting import epsilon_text
from tests.dashboard.fake_platform import FakePlatform
from tests.dashboard.reading import Open, text_of

NOISE = DifferentialPrivacy(noise_multiplier=4.0, clip_norm=0.5)


def by_label(items, label: str):
    return next(item for item in items if item.label == label)


def filled(platform: FakePlatform, open_page: Open) -> AppTest:
    platform.add_client("north")
    platform.add_client("south")
    app = open_page(pages.NEW_FEDERATION)
    by_label(app.text_input, "Name").input("Two clinics")
    app.multiselect[0].set_value(platform.clients)
    by_label(app.selectbox, "Strategy").set_value(info_of(StrategyName.FEDIT)).run()
    by_label(app.toggle, "Differential privacy").set_value(True)
    return app.run()


def test_the_form_says_what_a_run_will_cost_and_sends_the_settings(
    platform: FakePlatform, open_page: Open
) -> None:
    app = filled(platform, open_page)
    default = DifferentialPrivacy()
    assert f"epsilon = {epsilon_text(default.epsilon_after(5))} at delta" in text_of(app)
    by_label(app.number_input, "Noise multiplier").set_value(4.0)
    by_label(app.number_input, "Clipping norm").set_value(0.5)
    app.run()
    assert f"epsilon = {epsilon_text(NOISE.epsilon_after(5))} at delta" in text_of(app)
    by_label(app.button, "Create and start").click().run()
    run, baseline = platform.runs
    assert run.privacy == PrivacySettings(differential_privacy=NOISE)
    assert baseline.strategy.name is StrategyName.LOCAL_ONLY
    assert baseline.privacy == PrivacySettings()


def test_a_strategy_that_cannot_be_noised_says_so_in_the_form(
    platform: FakePlatform, open_page: Open
) -> None:
    app = filled(platform, open_page)
    by_label(app.selectbox, "Strategy").set_value(info_of(StrategyName.HETLORA)).run()
    assert "choose a strategy with linear aggregation" in text_of(app)


def test_a_run_shows_what_it_has_spent(platform: FakePlatform, open_page: Open) -> None:
    clients = [platform.add_client("north"), platform.add_client("south")]
    federation = platform.add_federation("Two clinics", clients)
    create = RunCreate(strategy=FedItParams(), privacy=PrivacySettings(differential_privacy=NOISE))
    run = platform.add_run(federation, create, RunStatus.RUNNING)
    app = open_page(pages.RUN, id=str(run.id))
    assert by_label(app.metric, "Epsilon so far").value == "–"
    platform.play_round(run, 1)
    platform.measure(run, clients[0], 1, MetricName.EPSILON, NOISE.epsilon_after(1))
    app = open_page(pages.RUN, id=str(run.id))
    values = {metric.label: metric.value for metric in app.metric}
    assert values["Epsilon so far"] == epsilon_text(NOISE.epsilon_after(1))
    assert values["Epsilon at the end"] == epsilon_text(NOISE.epsilon_after(5))
    assert (values["Delta"], values["Noise"]) == ("1e-05", "2")
    assert "one client's whole data set" in text_of(app)
    assert "Accuracies and losses stay with the clients" in text_of(app)


def test_the_form_asks_for_secure_aggregation_and_says_what_it_needs(
    platform: FakePlatform, open_page: Open
) -> None:
    app = filled(platform, open_page)
    by_label(app.toggle, "Differential privacy").set_value(False)
    by_label(app.toggle, "Secure aggregation").set_value(True).run()
    assert "one client that leaves ends the run" in text_of(app)
    by_label(app.number_input, "Value range").set_value(4.0).run()
    by_label(app.button, "Create and start").click().run()
    assert platform.runs[0].privacy == PrivacySettings(
        secure_aggregation=SecureAggregation(value_range=4.0)
    )


def test_a_secure_run_shows_its_exchange_and_says_what_is_missing(
    platform: FakePlatform, open_page: Open
) -> None:
    clients = [platform.add_client(name) for name in ("north", "south", "east")]
    federation = platform.add_federation("Three clinics", clients)
    create = RunCreate(
        strategy=FedItParams(), privacy=PrivacySettings(secure_aggregation=SecureAggregation())
    )
    run = platform.add_run(federation, create, RunStatus.RUNNING)
    platform.play_round(run, 1)
    secure = SecureProgress(
        step=SecureStep.UNMASKING,
        session=1,
        threshold=3,
        num_done=2,
        num_expected=3,
        waiting_for=["east"],
    )
    [closed] = platform.rounds[run.id]
    opened = {"status": RoundStatus.OPEN, "secure": secure}
    platform.rounds[run.id] = [closed.model_copy(update=opened)]
    text = text_of(open_page(pages.RUN, id=str(run.id)))
    assert "opens the sum of each round's updates and no single one" in text
    assert "Waiting for east" in text


@pytest.mark.parametrize(
    ("epsilon", "shown"), [(0.0, "0"), (0.51842, "0.518"), (38.17, "38.2"), (1234.5, "1,234")]
)
def test_epsilon_has_three_digits(epsilon: float, shown: str) -> None:
    assert epsilon_text(epsilon) == shown
