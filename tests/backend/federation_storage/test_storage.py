"""What a federation stores, who limits it, and what happens at the limit."""

import hashlib
from typing import Any
from uuid import UUID

import pytest
from redis import Redis
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from backend.auth.service import issue_credential
from backend.contracts.agent import SHARED_MEDIA_TYPE
from backend.contracts.enums import Execution, RunStatus
from backend.contracts.storage import BlobUse
from backend.db.base import Base
from backend.db.models import (
    AuditEntry,
    Blob,
    Client,
    ClientUpdate,
    Event,
    Federation,
    Run,
    UploadPiece,
)
from backend.settings import Settings
from backend.storage import BlobStore, save_blob
from backend.storage.usage import UPDATE_COLUMNS, QuotaExceededError, require_room, used_bytes
from tests.backend.rows import OpenRun, add_open_run
from tests.backend.updates.test_resumable import shared
from tests.factories import NDJSON, ROWS, Caller, problem


@pytest.fixture
def rows(session: Session) -> OpenRun:
    return add_open_run(session, execution=Execution.REMOTE)


@pytest.fixture
def federation_id(session: Session, rows: OpenRun) -> UUID:
    return session.get_one(Run, rows.run_id).federation_id


def limit(session: Session, federation_id: UUID, quota_bytes: int) -> None:
    session.get_one(Federation, federation_id).quota_bytes = quota_bytes
    session.commit()


def test_every_column_that_refers_to_a_blob_counts() -> None:
    counted = {str(column) for column in UPDATE_COLUMNS.values()}
    counted |= {str(Run.state_sha256), str(UploadPiece.sha256)}
    counted |= {str(Federation.probe_set_sha256), str(Run.probe_set_sha256)}
    mapped = {mapper.local_table: mapper.class_.__name__ for mapper in Base.registry.mappers}
    referring = {
        f"{mapped[table]}.{column.name}"
        for table in Base.metadata.sorted_tables
        for column in table.columns
        if any(key.column.table is Blob.__table__ for key in column.foreign_keys)
    }
    assert referring == counted, "backend.storage.usage has to know the others too"


def test_a_blob_counts_once_and_in_each_of_its_uses(
    session: Session, blob_store: BlobStore, rows: OpenRun, federation_id: UUID, viewer: Caller
) -> None:
    def blob(text: str) -> str:
        return save_blob(session, blob_store, text.encode(), "text/plain").sha256

    run = session.get_one(Run, rows.run_id)
    run.state_sha256 = blob("state")
    first, second = (session.get_one(ClientUpdate, update_id) for update_id in rows.update_ids)
    first.plan_sha256 = second.plan_sha256 = blob("one plan for both")
    first.shared_sha256 = first.private_sha256 = blob("equal")
    other = add_open_run(session)
    session.get_one(Run, other.run_id).state_sha256 = blob("of another federation")
    session.get_one(Client, rows.client_ids[0]).dataset = {"sha256": blob("rows")}
    session.commit()
    storage = viewer.get(f"/federations/{federation_id}/storage").json()
    assert storage["used_bytes"] == len("state" + "one plan for both" + "equal" + "rows")
    assert {use["use"]: (use["num_blobs"], use["size_bytes"]) for use in storage["uses"]} == {
        BlobUse.PLANS: (1, 17),
        BlobUse.STATES: (1, 5),
        BlobUse.UPDATES: (1, 5),
        BlobUse.PRIVATE: (1, 5),
        BlobUse.DATASETS: (1, 4),
    }
    assert storage["uses"][0]["use"] == BlobUse.PLANS, "the largest first"
    assert storage["policy"] == {"quota_bytes": None, "retention_days": None, "retention_rounds": 0}


def test_administrators_set_limits_field_by_field(
    session: Session,
    admin: Caller,
    operator: Caller,
    federation_id: UUID,
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(settings, "quota_bytes", 1000)
    monkeypatch.setattr(settings, "retention_days", 90.0)
    path = f"/federations/{federation_id}/storage"
    own = {"quota_bytes": 5, "retention_days": None, "retention_rounds": None}
    changed = admin.request("PATCH", path, json={"quota_bytes": 5}).json()
    assert changed["own"] == own
    assert changed["policy"] == {"quota_bytes": 5, "retention_days": 90, "retention_rounds": 0}
    changed = admin.request("PATCH", path, json={"retention_days": 0, "retention_rounds": 3}).json()
    assert changed["policy"] == {"quota_bytes": 5, "retention_days": 0, "retention_rounds": 3}
    changed = admin.request("PATCH", path, json={"quota_bytes": None}).json()
    assert changed["policy"]["quota_bytes"] == 1000
    problem(admin.request("PATCH", path, json={"quota_bytes": -1}), 422, "invalid")
    problem(operator.request("PATCH", path, json={"quota_bytes": 9}), 403, "forbidden")
    entries = session.scalars(
        select(AuditEntry).where(AuditEntry.action == "federation.storage").order_by(AuditEntry.id)
    ).all()
    assert entries[0].data == {"before": {"quota_bytes": None}, "after": {"quota_bytes": 5}}


@pytest.mark.parametrize(
    ("quota", "more", "fits"), [(10, 4, True), (10, 5, False), (7, 0, True), (6, 0, False)]
)
def test_the_limit_is_the_last_byte_that_fits(
    session: Session,
    blob_store: BlobStore,
    rows: OpenRun,
    federation_id: UUID,
    quota: int,
    more: int,
    fits: bool,
) -> None:
    ref = save_blob(session, blob_store, b"6bytes", "text/plain")
    session.get_one(Run, rows.run_id).state_sha256 = ref.sha256
    limit(session, federation_id, quota)
    assert used_bytes(session, federation_id) == 6
    if fits:
        require_room(session, federation_id, Settings(), more)
    else:
        with pytest.raises(QuotaExceededError, match=rf"stores 6 bytes and may store {quota}: "):
            require_room(session, federation_id, Settings(), more)


@pytest.mark.parametrize("is_long", [False, True])
def test_an_agent_is_refused_once_on_the_run_page_and_may_try_again(
    anonymous: Caller,
    session: Session,
    broker: Redis,
    rows: OpenRun,
    federation_id: UUID,
    is_long: bool,
) -> None:
    credential = issue_credential(session, session.get_one(Client, rows.client_ids[0]))
    limit(session, federation_id, 10)
    agent = anonymous.with_token(credential)
    agent.post("/agent/lease", {"agent": "here"})
    content = shared(100, rows.client_ids[0])
    path = f"/agent/updates/{rows.update_ids[0]}"

    def send() -> Any:
        if is_long:
            sha256 = hashlib.sha256(content).hexdigest()
            body = {"fence": 1, "sha256": sha256, "size_bytes": len(content)}
            return agent.post(f"{path}/uploads", body)
        headers = {"Content-Type": SHARED_MEDIA_TYPE}
        return agent.put(f"{path}/shared?fence=1", content=content, headers=headers)

    for _ in range(2):
        refused = problem(send(), 507, "quota_exceeded")
        assert f"may store 10: {len(content):,} bytes more do not fit" in refused["detail"]
        assert "raise its limit" in refused["detail"]
    codes = [event.data.get("code") for event in session.scalars(select(Event)).all()]
    assert codes.count("quota_exceeded") == 1
    limit(session, federation_id, 10_000)
    assert send().status_code == 200


def test_data_sets_count_in_all_federations_of_their_client(
    session: Session, admin: Caller
) -> None:
    rows = add_open_run(session)
    federation_id = session.get_one(Run, rows.run_id).federation_id
    session.get_one(Run, rows.run_id).status = RunStatus.COMPLETED
    limit(session, federation_id, 10)
    path = f"/clients/{rows.client_ids[0]}/dataset"
    problem(admin.put(path, content=ROWS, headers=NDJSON), 507, "quota_exceeded")
    assert session.scalar(select(func.count()).select_from(Blob)) == 1
    limit(session, federation_id, 10_000)
    assert admin.put(path, content=ROWS, headers=NDJSON).status_code == 200
    assert used_bytes(session, federation_id) == len(ROWS)


def test_a_full_federation_starts_and_resumes_nothing(
    session: Session, operator: Caller, blob_store: BlobStore, rows: OpenRun, federation_id: UUID
) -> None:
    ref = save_blob(session, blob_store, b"large", "text/plain")
    run = session.get_one(Run, rows.run_id)
    run.state_sha256, run.status = ref.sha256, RunStatus.PAUSED
    limit(session, federation_id, 5)
    for action in ("resume", "start"):
        refused = problem(operator.post(f"/runs/{rows.run_id}/{action}"), 507, "quota_exceeded")
        assert "it is full" in refused["detail"]
    limit(session, federation_id, 6)
    assert operator.post(f"/runs/{rows.run_id}/resume").status_code == 202
