"""Measured values as pages and as a table."""

import csv
import io

import pytest
from sqlalchemy.orm import Session

from backend.contracts.metrics import MetricName
from backend.db.models import Client
from backend.journal import record_metrics
from backend.metrics import service
from tests.backend.rows import OpenRun, add_open_run
from tests.factories import Caller


@pytest.fixture
def rows(session: Session) -> OpenRun:
    rows = add_open_run(session, num_clients=1)
    session.get_one(Client, rows.client_ids[0]).name = '=HYPERLINK("evil"), "quoted"'
    for round_number in (1, 2, 3):
        record_metrics(
            session,
            rows.run_id,
            rows.client_ids[0],
            round_number,
            {MetricName.ACCURACY_AFTER_TRAINING: round_number / 3},
        )
    record_metrics(session, rows.run_id, None, 3, {MetricName.TRAIN_LOSS: 0.1}, step=4)
    session.commit()
    return rows


def test_pages_are_newest_first(viewer: Caller, rows: OpenRun) -> None:
    path = f"/runs/{rows.run_id}/metrics"
    first = viewer.get(path, params={"limit": 2}).json()
    assert [(p["name"], p["round_number"], p["scope"]) for p in first["items"]] == [
        ("train_loss", 3, "progress"),
        ("accuracy_after_training", 3, "round"),
    ]
    rest = viewer.get(path, params={"limit": 2, "cursor": first["next_cursor"]}).json()
    assert [p["round_number"] for p in rest["items"]] == [2, 1]
    assert rest["next_cursor"] is None


@pytest.mark.parametrize(
    ("query", "headers"),
    [("?format=csv", {}), ("", {"Accept": "text/csv"})],
    ids=["query", "header"],
)
def test_the_table_has_everything(
    viewer: Caller,
    rows: OpenRun,
    monkeypatch: pytest.MonkeyPatch,
    query: str,
    headers: dict[str, str],
) -> None:
    monkeypatch.setattr(service, "CSV_CHUNK_ROWS", 2)  # several parts
    response = viewer.get(f"/runs/{rows.run_id}/metrics{query}", headers=headers)
    assert response.headers["content-type"].startswith("text/csv")
    table = list(csv.DictReader(io.StringIO(response.text)))
    assert [row["round_number"] for row in table] == ["1", "2", "3", "3"]
    assert float(table[0]["value"]) == 1 / 3  # no digit is lost
    assert table[0]["client_name"] == '\'=HYPERLINK("evil"), "quoted"'  # no formula
    assert (table[3]["scope"], table[3]["step"], table[3]["client_id"]) == ("progress", "4", "")


def test_json_wins_when_asked_for(viewer: Caller, rows: OpenRun) -> None:
    response = viewer.get(
        f"/runs/{rows.run_id}/metrics?format=json", headers={"Accept": "text/csv"}
    )
    assert len(response.json()["items"]) == 4
