"""The round before round 1, in which the clients' models agree on codes, on the run's page."""

from backend.contracts.enums import RoundKind, RunStatus
from backend.contracts.params.h2tune import H2TuneParams
from backend.contracts.runs import RunCreate
from dashboard import pages
from dashboard.components.labels import round_text
from dashboard.components.live_history import LiveHistory, from_round_1
from dashboard.components.measured import report_table
from tests.dashboard.fake_platform import FakePlatform, now, three_clinics
from tests.dashboard.reading import Open, text_of

EXCHANGE = RunCreate(strategy=H2TuneParams(gauge="probe", codes="exchange"))


def test_it_is_seen_as_a_step_of_its_own(platform: FakePlatform, open_page: Open) -> None:
    run = platform.add_run(three_clinics(platform), EXCHANGE, RunStatus.RUNNING)
    run = platform.change(run, started_at=now())
    platform.play_round(run, 0, RoundKind.GAUGE)
    text = text_of(open_page(pages.RUN, id=str(run.id)))
    assert "agreeing on common codes" in text
    assert "Clients agreeing on common codes" in text
    assert "No training data is used" in text
    assert "not begun" not in text
    platform.play_round(run, 1)
    later = text_of(open_page(pages.RUN, id=str(run.id)))
    assert "round 1 of 5" in later
    assert "Clients in round 1" in later
    sentence = "To agree on common codes before round 1, all clients together sent 2.9 MiB once"
    assert sentence in text
    assert sentence in later


def test_before_it_the_run_has_not_begun(platform: FakePlatform) -> None:
    run = platform.add_run(three_clinics(platform), EXCHANGE)
    assert round_text(run) == "not begun"


def test_bars_begin_with_round_1_and_reports_with_the_codes(platform: FakePlatform) -> None:
    run = platform.add_run(three_clinics(platform), EXCHANGE, RunStatus.RUNNING)
    for number, kind in ((0, RoundKind.GAUGE), (1, RoundKind.TRAIN)):
        platform.play_round(run, number, kind)
    history = LiveHistory(run)
    history.rounds = {
        item.round_number: item.model_copy(update={"report": {"agreement_explained": 0.9}})
        for item in platform.rounds[run.id]
    }
    columns = list(report_table(history, []).columns)
    assert columns[1:3] == ["Codes", "Round 1"]
    client = platform.members(run)[0].id
    assert from_round_1({client: {0: 3.0, 1: 4.0}}) == {client: {1: 4.0}}
