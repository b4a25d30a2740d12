from backend.contracts.enums import RunStatus
from backend.contracts.params.h2tune import H2TuneParams
from backend.contracts.runs import RunCreate
from dashboard import pages
from tests.dashboard.fake_platform import FakePlatform, three_clinics
from tests.dashboard.reading import Open, text_of


def test_a_waiting_run_shows_its_place_on_both_pages(
    platform: FakePlatform, open_page: Open
) -> None:
    federation = three_clinics(platform)
    run = platform.add_run(federation, RunCreate(strategy=H2TuneParams()), RunStatus.RUNNING)
    platform.change(run, queue_position=3)
    told = "Number 3 in the queue for a worker; federations take turns."
    assert told in text_of(open_page(pages.RUN, id=str(run.id)))
    assert told in text_of(open_page(pages.FEDERATION, id=str(federation.id)))
