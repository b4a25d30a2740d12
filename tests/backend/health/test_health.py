"""What tells whoever runs the platform how it is."""

from pathlib import Path

import pytest
from pydantic import SecretStr
from sqlalchemy.orm import Session
from starlette.testclient import TestClient

from backend.main import create_app
from backend.settings import Settings
from tests.backend.rows import add_open_run
from tests.factories import Caller


def test_alive_and_ready(http: TestClient) -> None:
    assert http.get("/healthz").json() == {"status": "ok"}
    response = http.get("/readyz")
    assert response.status_code == 200
    assert response.json() == {"database": True, "redis": True, "blob_store": True}


def test_what_is_away_is_named(tmp_path: Path) -> None:
    nowhere = Settings(
        database_url=SecretStr("postgresql+psycopg://u:p@127.0.0.1:1/x"),
        redis_url=SecretStr("redis://127.0.0.1:1/0"),
        blob_url=tmp_path.as_uri(),
    )
    with TestClient(create_app(nowhere), raise_server_exceptions=False) as http:
        response = http.get("/readyz")
        assert response.status_code == 503
        assert response.json() == {"database": False, "redis": False, "blob_store": True}
        assert http.get("/healthz").status_code == 200
        refused = http.post("/api/v1/sessions", json={"username": "a", "password": "b"})
    assert refused.status_code == 503
    assert refused.json()["code"] == "database_unavailable"
    assert "127.0.0.1" not in refused.text


def test_counters_have_routes_and_states(
    http: TestClient, viewer: Caller, session: Session
) -> None:
    rows = add_open_run(session)
    viewer.get(f"/runs/{rows.run_id}")
    text = http.get("/metrics").text
    assert 'fedbraid_runs{status="running"} 1.0' in text
    assert 'fedbraid_client_updates{status="pending"} 2.0' in text
    label = 'method="GET",route="/runs/{run_id}",status="200"'
    assert f"fedbraid_requests_total{{{label}}}" in text
    assert str(rows.run_id) not in text


@pytest.mark.parametrize("missing", ["database_url", "blob_url"])
def test_missing_settings_are_named(settings: Settings, missing: str) -> None:
    with pytest.raises(ValueError, match="DATABASE_URL and BLOB_URL must both be set"):
        create_app(settings.model_copy(update={missing: None}))
