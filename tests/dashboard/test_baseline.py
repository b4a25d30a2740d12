from uuid import UUID

import pytest
from streamlit.testing.v1 import AppTest

from backend.contracts.datasets import BuiltinDataset, BuiltinTaskName
from backend.contracts.enums import Execution, RunStatus
from backend.contracts.federations import FederationDetail
from backend.contracts.metrics import MetricName
from backend.contracts.params.h2tune import H2TuneParams
from backend.contracts.params.lora import LocalOnlyParams
from backend.contracts.runs import Run, RunCreate
from backend.contracts.strategies import Params
from dashboard import pages
from dashboard.components.baseline_view import CONTROL_NOTES, chance_text
from tests.dashboard.fake_platform import FakePlatform, three_clinics
from tests.dashboard.reading import Open, text_of

TASK = BuiltinTaskName.ARITHMETIC_FILL_IN


def rows(number: int) -> BuiltinDataset:
    return BuiltinDataset(task=TASK, num_test=number)


def completed(platform: FakePlatform, federation: FederationDetail, params: Params) -> Run:
    run = platform.add_run(federation, RunCreate(strategy=params), RunStatus.RUNNING)
    return platform.play_to_end(run)


def page_of(
    platform: FakePlatform, open_page: Open, federation: FederationDetail, params: Params
) -> AppTest:
    completed(platform, federation, LocalOnlyParams())
    return open_page(pages.RUN, id=str(completed(platform, federation, params).id))


def lower(platform: FakePlatform, run: Run, client: UUID) -> None:
    """Makes one client's delivered adapter a bad one."""
    points = platform.metrics[run.id]
    for i, point in enumerate(points):
        if point.client_id == client and point.name is MetricName.ACCURACY_DELIVERED:
            points[i] = point.model_copy(update={"value": 0.01})


# Two standard errors of the difference of two shares of one half: 2 sqrt(2 (1/2)^2 / n).
# n = 200: 2 sqrt(.0025) = .1; n = 50: 2 sqrt(.01) = .2; n = 1250: 2 sqrt(.0004) = .04.
@pytest.mark.parametrize(
    ("test_rows", "said"),
    [
        ([200] * 5, "with 200 test rows, a client's difference below about 10 points may be"),
        ([1250], "with 1,250 test rows, a client's difference below about 4 points may be chance."),
        ([50, 1250, 200], "about 20 points with 50 test rows, or 4 with 1,250, may be chance."),
        ([1], "with 1 test row, a client's difference below about 100 points may be chance."),
        ([200, None], "up to about 10 points with 200 rows, 20 with 50."),
        ([], "up to about 10 points with 200 rows, 20 with 50."),
    ],
)
def test_how_large_chance_is_follows_from_the_test_rows(
    test_rows: list[int | None], said: str
) -> None:
    assert said in chance_text(test_rows)


def test_the_page_speaks_of_the_test_rows_of_this_run(
    platform: FakePlatform, open_page: Open
) -> None:
    members = [platform.add_client(f"member-{i}", dataset=rows(200)) for i in range(3)]
    federation = platform.add_federation("Three alike", members)
    assert "with 200 test rows" in text_of(page_of(platform, open_page, federation, H2TuneParams()))


def test_the_test_rows_of_a_remote_client_are_not_made_up(
    platform: FakePlatform, open_page: Open
) -> None:
    members = [
        platform.add_client("near", dataset=rows(200)),
        platform.add_client("far", execution=Execution.REMOTE, dataset=None, num_examples=80),
    ]
    federation = platform.add_federation("Near and far", members)
    text = text_of(page_of(platform, open_page, federation, H2TuneParams()))
    assert "the fewer test rows a client has" in text


def test_a_client_that_loses_by_sharing_is_named(platform: FakePlatform, open_page: Open) -> None:
    federation = three_clinics(platform)
    completed(platform, federation, LocalOnlyParams())
    run = completed(platform, federation, H2TuneParams())
    lower(platform, run, federation.clients[0].id)
    text = text_of(open_page(pages.RUN, id=str(run.id)))
    assert "Negative transfer: north-clinic does worse than when training alone." in text


@pytest.mark.parametrize("control", ["alone", "permuted", "noise"])
def test_a_control_says_that_nothing_in_it_is_transfer(
    platform: FakePlatform, open_page: Open, control: str
) -> None:
    federation = three_clinics(platform)
    completed(platform, federation, LocalOnlyParams())
    params = H2TuneParams.model_validate({"control": control})
    run = completed(platform, federation, params)
    lower(platform, run, federation.clients[0].id)
    app = open_page(pages.RUN, id=str(run.id))
    text = text_of(app)
    assert f"A control: {CONTROL_NOTES[control]}" in text
    assert "Negative transfer" not in text
    assert "No client does worse" not in text
    assert app.title[0].value == f"H2Tune, control: {control}"


def test_every_control_has_its_note() -> None:
    choices = H2TuneParams.model_json_schema()["properties"]["control"]["enum"]
    assert set(choices) - {"none"} == set(CONTROL_NOTES)


def test_completed_runs_are_compared_in_percent_in_the_order_of_the_chart(
    platform: FakePlatform, open_page: Open
) -> None:
    federation = three_clinics(platform)
    run = completed(platform, federation, LocalOnlyParams())
    platform.metrics[run.id] = [
        point.model_copy(update={"value": 0.375})
        if point.name is MetricName.ACCURACY_DELIVERED
        else point
        for point in platform.metrics[run.id]
    ]
    app = open_page(pages.FEDERATION, id=str(federation.id))
    table = next(item.value for item in app.dataframe if "Mean over clients" in item.value)
    names = ["city-hospital", "north-clinic", "south-practice"]
    assert list(table.columns) == ["Run", "Mean over clients", *names]
    assert list(table.iloc[0])[1:] == pytest.approx([37.5] * 4)
