"""Many requests that wait for one row: whoever holds it must find a thread to commit in.

FastAPI runs each step of a request (its session, its route, the making of its answer) in a thread
of a pool, 40 by default, and commits after the last of them. Forty requests that wait for a row
would take all threads, and the one that holds the row could never give it back.
"""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from redis import Redis
from sqlalchemy import select, text
from sqlalchemy.orm import Session

from backend.auth.service import issue_credential
from backend.contracts.enums import Execution
from backend.db.models import Client, Upload
from backend.db.session import SessionFactory
from backend.settings import Settings
from tests.backend.rows import add_open_run
from tests.serving import serve_api

NUM_REQUESTS = 70
SECONDS = 20.0  # a request that waits too long for its row fails after 30


@pytest.fixture
def address(settings: Settings, broker: Redis) -> Iterator[str]:
    with serve_api(settings) as port:
        yield f"http://127.0.0.1:{port}"


def num_waiting(session_factory: SessionFactory) -> int:
    """Statements that wait for a lock."""
    with session_factory() as session:
        count = session.scalar(
            text("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'")
        )
    return int(count or 0)


def test_whoever_holds_a_row_can_commit_while_all_others_wait_for_it(
    address: str, session: Session, session_factory: SessionFactory
) -> None:
    rows = add_open_run(session, 1, Execution.REMOTE)
    credential = issue_credential(session, session.get_one(Client, rows.client_ids[0]))
    session.commit()
    headers = {"Authorization": f"Bearer {credential}"}
    path = f"/api/v1/agent/updates/{rows.update_ids[0]}/uploads"
    upload = {"fence": 1, "sha256": "1" * 64, "size_bytes": 100}
    many = httpx.Limits(max_connections=NUM_REQUESTS)

    with (
        httpx.Client(base_url=address, headers=headers, limits=many, timeout=60) as http,
        ThreadPoolExecutor(NUM_REQUESTS) as threads,
    ):

        def announce() -> int:
            return http.post(path, json=upload).status_code

        assert http.post("/api/v1/agent/lease", json={"agent": "here"}).status_code == 200
        assert announce() == 200
        session.execute(select(Upload.id).with_for_update()).one()
        answers = [threads.submit(announce) for _ in range(NUM_REQUESTS)]
        deadline = time.monotonic() + SECONDS
        while num_waiting(session_factory) < 25:  # of the 30 connections that a program has
            assert time.monotonic() < deadline, "the requests do not arrive"
            time.sleep(0.05)
        time.sleep(0.5)  # the others are behind them, for a connection or a thread
        started = time.monotonic()
        session.commit()
        assert {answer.result() for answer in answers} == {200}
    assert time.monotonic() - started < SECONDS
