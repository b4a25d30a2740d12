from backend.contracts.enums import RunStatus
from backend.contracts.params.h2tune import H2TuneParams
from backend.contracts.runs import RunCreate
from dashboard import pages
from tests.dashboard.fake_platform import FakePlatform, three_clinics
from tests.dashboard.reading import Open, text_of
from tests.dashboard.test_pages import button, by_label


def test_an_operator_refuses_a_run_for_a_client_and_takes_it_back(
    platform: FakePlatform, open_page: Open
) -> None:
    federation = three_clinics(platform)
    run = platform.add_run(federation, RunCreate(strategy=H2TuneParams()), RunStatus.PAUSED)
    app = open_page(pages.RUN, id=str(run.id))
    assert button(app, "Refuse").disabled  # without a reason
    by_label(app.text_input, "Reason").set_value("Not *yet* agreed.").run()
    button(app, "Refuse").click().run()
    (refusal,) = platform.refusals
    assert (refusal.client_id, refusal.reason) == (federation.clients[0].id, "Not *yet* agreed.")
    shown = next(item.value for item in app.warning if "does not take part" in item.value)
    assert r"Not \*yet\* agreed." in shown
    names = by_label(app.selectbox, "Client").options
    assert federation.clients[0].name not in names
    assert len(names) == 2
    next(item for item in app.button if item.label.endswith("take part")).click().run()
    assert platform.refusals == []
    assert "does not take part" not in text_of(app)


def test_a_run_that_ended_offers_nothing_to_refuse(platform: FakePlatform, open_page: Open) -> None:
    federation = three_clinics(platform)
    run = platform.add_run(federation, RunCreate(strategy=H2TuneParams()), RunStatus.CANCELLED)
    app = open_page(pages.RUN, id=str(run.id))
    assert "Refuse" not in [item.label for item in app.button]
