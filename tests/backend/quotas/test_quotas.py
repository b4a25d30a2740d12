"""What clients and federations may call and move, counted in a real Redis."""

from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import SecretStr
from redis import Redis
from sqlalchemy.orm import Session
from starlette.testclient import TestClient

from backend.auth.service import issue_credential
from backend.contracts.enums import Execution
from backend.db.models import Client, Run
from backend.main import create_app
from backend.settings import Settings
from tests.backend.rows import OpenRun, add_open_run
from tests.factories import Caller, problem


@pytest.fixture
def rows(session: Session) -> OpenRun:
    return add_open_run(session, 2, Execution.REMOTE)


@pytest.fixture
def api(settings: Settings, admin: Caller, broker: Redis) -> Iterator[Any]:
    """Opens an API with other quotas, whose counters start at zero."""
    opened: list[TestClient] = []

    def open_api(**quotas: object) -> Caller:
        http = TestClient(
            create_app(settings.model_copy(update=quotas)), raise_server_exceptions=False
        )
        opened.append(http.__enter__())
        return Caller(http, admin.token)

    yield open_api
    for http in opened:
        http.__exit__(None, None, None)


def agent(caller: Caller, session: Session, rows: OpenRun, index: int = 0) -> Caller:
    credential = issue_credential(session, session.get_one(Client, rows.client_ids[index]))
    session.commit()
    return caller.with_token(credential)


def beat(caller: Caller, rows: OpenRun, index: int = 0) -> Any:
    body = {"fence": 1, "stage": "training", "step": 0, "num_steps": 1}
    return caller.post(f"/agent/updates/{rows.update_ids[index]}/heartbeat", body)


def used(caller: Caller, path: str) -> dict[str, tuple[int, int | None]]:
    uses = caller.get(f"{path}/usage").json()
    return {use["name"]: (use["used"], use["allowed"]) for use in uses}


def test_a_client_has_so_many_requests_an_hour(api: Any, session: Session, rows: OpenRun) -> None:
    admin = api(client_requests_per_hour=3)
    first, second = (agent(admin, session, rows, index) for index in (0, 1))
    for _ in range(3):
        assert first.post("/agent/lease", {}).status_code == 200
    response = first.post("/agent/lease", {})
    body = problem(response, 429, "quota_exceeded")
    assert "has used up its quota of 3 requests an hour" in body["detail"]
    assert "raise FEDBRAID_CLIENT_REQUESTS_PER_HOUR" in body["detail"]
    assert 1 <= int(response.headers["retry-after"]) <= 3601
    assert second.post("/agent/lease", {}).status_code == 200  # others are not concerned
    again = agent(admin, session, rows, 0)  # nor does another credential help
    problem(again.post("/agent/lease", {}), 429, "quota_exceeded")


def test_bytes_of_requests_and_answers_count(api: Any, session: Session, rows: OpenRun) -> None:
    admin = api(client_bytes_per_day=150)
    client = agent(admin, session, rows)
    sent = client.post("/agent/lease", {"agent": "x" * 100})
    moved = len(sent.content) + len(sent.request.content)
    assert moved > 150
    path = f"/clients/{rows.client_ids[0]}"
    assert used(admin, path)["bytes_per_day"] == (moved, 150)
    body = problem(client.post("/agent/lease", {}), 429, "quota_exceeded")
    assert "its quota of 150 bytes a day" in body["detail"]


def test_a_federation_has_a_quota_over_all_who_work_in_it(
    api: Any, session: Session, rows: OpenRun
) -> None:
    admin = api(federation_requests_per_hour=3)
    federation_id = session.get_one(Run, rows.run_id).federation_id
    other = add_open_run(session, 1, Execution.REMOTE)
    beat(agent(admin, session, rows, 0), rows, 0)
    beat(agent(admin, session, rows, 1), rows, 1)
    assert admin.get(f"/runs/{rows.run_id}").status_code == 200
    problem(admin.get(f"/federations/{federation_id}"), 429, "quota_exceeded")
    assert beat(agent(admin, session, rows, 0), rows, 0).status_code == 429
    assert admin.get(f"/runs/{other.run_id}").status_code == 200
    assert admin.get("/federations").status_code == 200


def test_a_stranger_cannot_use_up_the_quota_of_a_federation(
    api: Any, session: Session, rows: OpenRun
) -> None:
    admin = api()
    other = add_open_run(session, 1, Execution.REMOTE)
    stranger = agent(admin, session, other)
    problem(beat(stranger, rows), 404, "not_found")
    federation_id = session.get_one(Run, rows.run_id).federation_id
    assert used(admin, f"/federations/{federation_id}")["requests_per_hour"][0] == 1  # the question


def test_zero_means_no_quota_and_is_counted_all_the_same(
    api: Any, session: Session, rows: OpenRun
) -> None:
    admin = api(client_requests_per_hour=0)
    client = agent(admin, session, rows)
    client.post("/agent/lease", {})
    path = f"/clients/{rows.client_ids[0]}"
    assert used(client, path)["requests_per_hour"] == (1 + 1, None)


def test_requests_pass_when_redis_is_away(api: Any, session: Session, rows: OpenRun) -> None:
    admin = api(redis_url=SecretStr("redis://127.0.0.1:1/0"), client_requests_per_hour=1)
    client = agent(admin, session, rows)
    assert [client.get("/clients/me").status_code for _ in range(2)] == [200, 200]
    path = f"/clients/{rows.client_ids[0]}"
    assert used(admin, path) == {"requests_per_hour": (0, 1), "bytes_per_day": (0, 100 * 2**30)}
