"""The live state of a run: cursors, rounds, thinning."""

from dataclasses import dataclass
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy.orm import Session

from backend.contracts.enums import EventKind, RoundKind, RoundStatus
from backend.contracts.metrics import MetricName
from backend.db.models import ClientUpdate, Round, Run
from backend.journal import record_event, record_metrics
from backend.lifecycle import change_round
from backend.metrics import service as metrics
from tests.backend.rows import OpenRun, add_open_run
from tests.factories import Caller, problem


@dataclass(frozen=True)
class Live:
    """A running run and somebody who looks at it."""

    caller: Caller
    session: Session
    rows: OpenRun

    def get(self, after: int = 0) -> dict[str, Any]:
        response = self.caller.get(f"/runs/{self.rows.run_id}/live", params={"after": after})
        assert response.status_code == 200, response.text
        return dict(response.json())

    def add_event(self, kind: EventKind, message: str, **place: Any) -> None:
        record_event(self.session, self.rows.run_id, kind, message, **place)
        self.session.commit()

    def add_metric(
        self, name: MetricName, value: float, round_number: int = 1, step: int | None = None
    ) -> None:
        record_metrics(
            self.session,
            self.rows.run_id,
            self.rows.client_ids[0],
            round_number,
            {name: value},
            step=step,
        )
        self.session.commit()


@pytest.fixture
def live(viewer: Caller, session: Session) -> Live:
    return Live(viewer, session, add_open_run(session))


def test_the_first_answer_has_everything(live: Live) -> None:
    live.add_event(EventKind.RUN_STARTED, "Started.")
    live.add_metric(MetricName.TRAIN_LOSS, 0.25)
    live.add_metric(MetricName.TRAIN_LOSS, 0.5, step=3)
    answer = live.get()
    assert answer["run"]["status"] == "running"
    assert [event["message"] for event in answer["events"]] == ["Started."]
    points = [(p["scope"], p["step"], p["name"], p["value"]) for p in answer["metrics"]]
    assert points == [("round", None, "train_loss", 0.25), ("progress", 3, "train_loss", 0.5)]
    [round_] = answer["rounds"]
    assert (round_["round_number"], round_["kind"], round_["status"]) == (1, "train", "open")
    assert {u["client_id"] for u in round_["client_updates"]} == {
        str(client_id) for client_id in live.rows.client_ids
    }
    assert answer["cursor"] == answer["metrics"][-1]["id"]


def test_later_answers_have_what_is_new(live: Live) -> None:
    live.add_event(EventKind.RUN_STARTED, "first")
    cursor = live.get()["cursor"]
    quiet = live.get(cursor)
    assert (quiet["events"], quiet["metrics"], quiet["cursor"]) == ([], [], cursor)
    assert [r["round_number"] for r in quiet["rounds"]] == [1]
    live.add_event(EventKind.ROUND_AGGREGATED, "second")
    news = live.get(cursor)
    assert [event["message"] for event in news["events"]] == ["second"]
    assert news["cursor"] > cursor


def test_events_of_other_runs_stay_out(live: Live) -> None:
    live.add_event(EventKind.RUN_STARTED, "mine")
    other = Live(live.caller, live.session, add_open_run(live.session))
    other.add_event(EventKind.RUN_STARTED, "theirs")
    assert [event["message"] for event in live.get()["events"]] == ["mine"]
    assert [event["message"] for event in other.get()["events"]] == ["theirs"]


def open_next_round(live: Live, round_number: int) -> None:
    """Closes the round before, with an event as the worker records it."""
    session, run_id = live.session, live.rows.run_id
    before = session.query(Round).filter_by(run_id=run_id, round_number=round_number - 1).one()
    change_round(session, before.id, RoundStatus.AGGREGATING)
    change_round(session, before.id, RoundStatus.CLOSED)
    record_event(
        session,
        run_id,
        EventKind.ROUND_AGGREGATED,
        "aggregated",
        round_number=round_number - 1,
    )
    session.add(
        Round(
            run_id=run_id,
            round_number=round_number,
            kind=RoundKind.TRAIN,
            status=RoundStatus.OPEN,
        )
    )
    session.get_one(Run, run_id).round_number = round_number
    session.commit()


def test_a_round_that_closed_since_is_told(live: Live) -> None:
    live.add_event(EventKind.ROUND_OPENED, "opened", round_number=1)
    cursor = live.get()["cursor"]
    open_next_round(live, 2)
    open_next_round(live, 3)
    rounds = live.get(cursor)["rounds"]
    assert [(r["round_number"], r["status"]) for r in rounds] == [
        (1, "closed"),
        (2, "closed"),
        (3, "open"),
    ]
    cursor = live.get(cursor)["cursor"]
    assert [r["round_number"] for r in live.get(cursor)["rounds"]] == [3]
    assert [r["round_number"] for r in live.get(0)["rounds"]] == [1, 2, 3]


def test_progress_is_thinned_and_keeps_the_newest(
    live: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics, "MAX_PROGRESS_POINTS", 5)
    for step in range(20):
        live.add_metric(MetricName.TRAIN_LOSS, float(step), step=step)
        live.add_metric(MetricName.ACCURACY_AFTER_TRAINING, 0.5, round_number=step + 1)
    points = live.get()["metrics"]
    # 20 steps in 5 equal parts of 4: the last of each
    progress = [p["step"] for p in points if p["scope"] == "progress"]
    assert progress == [3, 7, 11, 15, 19]
    assert len([p for p in points if p["scope"] == "round"]) == 20


def test_a_long_backlog_comes_in_parts(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "MAX_LIVE_ROWS", 4)
    for number in range(5):
        live.add_event(EventKind.ATTEMPT_STARTED, f"event {number}")
        live.add_metric(MetricName.BYTES_UP, float(number))
    seen, cursor = [], 0
    while True:
        answer = live.get(cursor)
        if answer["cursor"] == cursor:
            break
        assert len(answer["events"]) + len(answer["metrics"]) <= 4
        seen += [event["message"] for event in answer["events"]]
        cursor = answer["cursor"]
    assert seen == [f"event {number}" for number in range(5)]


def test_progress_of_a_client_update_is_shown(live: Live) -> None:
    update = live.session.get_one(ClientUpdate, UUID(str(live.rows.update_ids[0])))
    update.stage, update.step, update.num_steps, update.fence = "training", 3, 40, 2
    live.session.commit()
    [round_] = live.get()["rounds"]
    shown = next(u for u in round_["client_updates"] if u["id"] == str(update.id))
    assert (shown["stage"], shown["step"], shown["num_steps"]) == ("training", 3, 40)
    assert shown["num_attempts"] == 2
    assert shown["client_name"].startswith("client-")


@pytest.mark.parametrize("after", [-1, 2**63, 10**30, "x"])
def test_a_wrong_cursor_is_refused(live: Live, after: object) -> None:
    response = live.caller.get(f"/runs/{live.rows.run_id}/live", params={"after": after})
    assert problem(response, 422, "invalid")["errors"][0]["field"] == "after"
