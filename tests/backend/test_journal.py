"""The journal: whoever has seen number N has seen everything before it."""

import threading

from sqlalchemy import select

from backend.contracts.enums import EventKind
from backend.contracts.metrics import MetricName
from backend.db.models import Event, Metric
from backend.db.session import SessionFactory
from backend.journal import record_event, record_metrics
from tests.backend.rows import add_open_run


def test_rows_appear_with_the_commit_in_order(session_factory: SessionFactory) -> None:
    with session_factory() as session:
        rows = add_open_run(session, num_clients=1)
        record_event(session, rows.run_id, EventKind.RUN_STARTED, "first", answer=42)
        record_metrics(session, rows.run_id, None, 1, {MetricName.TRAIN_LOSS: 1.5}, step=3)
        assert session.scalars(select(Event)).all() == []
        session.commit()
        event = session.scalars(select(Event)).one()
        metric = session.scalars(select(Metric)).one()
    assert (event.message, event.data) == ("first", {"answer": 42})
    assert event.id < metric.id


def test_a_rollback_forgets_them(session_factory: SessionFactory) -> None:
    with session_factory() as session:
        rows = add_open_run(session, num_clients=1)
        record_event(session, rows.run_id, EventKind.RUN_STARTED, "never happened")
        session.rollback()
        session.commit()
        assert session.scalars(select(Event)).all() == []


def test_a_reader_with_a_cursor_misses_nothing(session_factory: SessionFactory) -> None:
    """Writers race; a reader that polls with the largest number seen must get every row."""
    with session_factory() as session:
        rows = add_open_run(session, num_clients=1)
    num_writers, num_events = 4, 15
    done = threading.Event()
    seen: list[int] = []

    def write() -> None:
        for number in range(num_events):
            with session_factory() as session:
                record_event(session, rows.run_id, EventKind.RUN_STARTED, str(number))
                session.commit()

    def read() -> None:
        cursor = 0
        while True:
            finished = done.is_set()
            with session_factory() as session:
                new = session.scalars(
                    select(Event.id).where(Event.id > cursor).order_by(Event.id)
                ).all()
            seen.extend(new)
            cursor = max([cursor, *new])
            if finished:
                return

    writers = [threading.Thread(target=write) for _ in range(num_writers)]
    reader = threading.Thread(target=read)
    for thread in [reader, *writers]:
        thread.start()
    for thread in writers:
        thread.join()
    done.set()
    reader.join()
    assert len(seen) == len(set(seen)) == num_writers * num_events
