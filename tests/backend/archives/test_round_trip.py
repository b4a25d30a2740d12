"""A federation becomes an archive and the archive a federation, with everything that counts."""

import io
import json
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from backend.archives.exporting import snapshot, stream_archive
from backend.archives.importing import import_archive
from backend.archives.tables import TABLES, exported
from backend.auth.principals import SystemPrincipal
from backend.auth.service import issue_credential
from backend.contracts.archives import ImportedFederation
from backend.contracts.datasets import UploadedDataset
from backend.contracts.enums import (
    AttemptOutcome,
    EventKind,
    RoundStatus,
    RunStatus,
    UpdateStatus,
)
from backend.contracts.metrics import MetricName
from backend.contracts.probe_sets import encode_probe_set
from backend.db.base import Base
from backend.db.models import (
    Attempt,
    AuditEntry,
    Client,
    ClientUpdate,
    Event,
    Federation,
    Round,
    Run,
    Token,
)
from backend.db.session import SessionFactory
from backend.journal import record_event, record_metrics
from backend.resumption import resume_run
from backend.settings import Settings
from backend.storage import BlobStore, open_blob_store, save_blob
from tests.backend.rows import OpenRun, add_open_run, add_user
from tests.factories import Caller, problem

NOT_IN_ARCHIVES = {
    "audit_entries", "enrolment_keys", "federation_members", "signing_keys", "sign_in_failures",
    "sign_in_tickets", "tokens", "uploads", "upload_pieces", "users",
    "secure_sessions", "secure_parties",
}  # fmt: skip

PROBES = encode_probe_set(f"Sentence number {number}." for number in range(50))


class Original:
    """A federation with a completed run and one that is under way."""

    def __init__(self, session: Session, store: BlobStore) -> None:
        self.rows: OpenRun = add_open_run(session)
        self.store = store
        self.session = session
        run = session.get_one(Run, self.rows.run_id)
        self.federation_id: UUID = run.federation_id
        federation = session.get_one(Federation, self.federation_id)
        federation.probe_set_sha256 = run.probe_set_sha256 = self.blob(PROBES.decode())
        federation.probe_set_at = datetime(2026, 1, 1, tzinfo=UTC)
        federation.probe_set_by = federation.created_by
        self._complete(run)
        self.under_way = Run(
            federation_id=run.federation_id, strategy=run.strategy, training=run.training,
            num_rounds=2, seed=7, status=RunStatus.RUNNING, created_by=run.created_by,
            round_number=1,
        )  # fmt: skip
        session.add(self.under_way)
        session.flush()
        round_ = Round(run_id=self.under_way.id, round_number=1, kind="train")
        session.add(round_)
        session.flush()
        session.add(
            ClientUpdate(
                round_id=round_.id, client_id=self.rows.client_ids[0], plan_sha256=self.blob("p")
            )
        )
        issue_credential(session, session.get_one(Client, self.rows.client_ids[0]))
        session.commit()

    def blob(self, text: str) -> str:
        return save_blob(self.session, self.store, text.encode(), "text/plain").sha256

    def _complete(self, run: Run) -> None:
        session, first = self.session, self.rows.client_ids[0]
        run.status, run.ended_at = RunStatus.COMPLETED, datetime(2026, 1, 2, tzinfo=UTC)
        run.state_sha256 = self.blob("final state" * 1000)
        round_ = session.get_one(Round, self.rows.round_id)
        round_.status, round_.report = RoundStatus.CLOSED, {f"weight/{first}": 0.25}
        for number, update_id in enumerate(self.rows.update_ids):
            row = session.get_one(ClientUpdate, update_id)
            row.status, row.fence = UpdateStatus.ACCEPTED, 1
            row.plan_sha256, row.adapter_sha256 = self.blob("plan"), self.blob(f"adapter {number}")
            session.add(
                Attempt(
                    client_update_id=update_id, number=1, worker="w",
                    outcome=AttemptOutcome.ACCEPTED,
                )
            )  # fmt: skip
        dataset = UploadedDataset(
            format="json_lines", sha256=self.blob("rows"), num_train=1, num_validation=0, num_test=1
        )
        session.get_one(Client, first).dataset = dataset.model_dump(mode="json")
        record_event(
            session, run.id, EventKind.ROUND_AGGREGATED, f"Client {first} is in.",
            client_id=first, round_number=1, who=str(first), of=run.id.hex,
        )  # fmt: skip
        for step in (None, 0, 1):
            values = {MetricName.TRAIN_LOSS: 0.1 + (step or 0)}
            record_metrics(session, run.id, first, 1, values, step=step)


@pytest.fixture
def store(tmp_path: Path) -> BlobStore:
    return open_blob_store((tmp_path / "blobs").as_uri())


@pytest.fixture
def original(session: Session, store: BlobStore) -> Original:
    return Original(session, store)


def export(session_factory: SessionFactory, original: Original) -> bytes:
    with snapshot(session_factory, original.federation_id) as taken:
        return b"".join(stream_archive(taken, original.store))


def bring_in(
    session_factory: SessionFactory, store: BlobStore, archive: bytes
) -> ImportedFederation:
    with session_factory() as session:
        owner = add_user(session)
        session.commit()
    return import_archive(
        session_factory, store, Settings(), io.BytesIO(archive), SystemPrincipal(), owner.id
    )


def picture(session_factory: SessionFactory, federation_id: UUID) -> dict[str, list[Any]]:
    """All rows of a federation, with its ids replaced by the order in which they stand."""
    with snapshot(session_factory, federation_id) as taken:
        lines = {name: file.read().decode() for name, file in taken.tables.items()}
    order: dict[str, str] = {}
    pattern = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
    return {
        name: [
            json.loads(pattern.sub(lambda m: order.setdefault(m.group(), str(len(order))), line))
            for line in text.splitlines()
        ]
        for name, text in lines.items()
    }


def wipe(session_factory: SessionFactory) -> None:
    """Another platform: no rows at all."""
    with session_factory() as session:
        session.connection().exec_driver_sql("SET LOCAL session_replication_role = 'replica'")
        for table in reversed(Base.metadata.sorted_tables):
            session.execute(table.delete())
        session.commit()


def test_every_table_is_in_an_archive_or_left_out_on_purpose() -> None:
    assert set(TABLES) | NOT_IN_ARCHIVES == set(Base.metadata.tables)
    assert not set(TABLES) & NOT_IN_ARCHIVES
    secret = {"secret_hash", "password_hash", "totp_secret", "recovery_hashes", "created_by"}
    carried = {column.name for name in TABLES for column in exported(name).columns}
    assert not carried & secret


def test_on_another_platform_everything_is_as_it_was(
    session_factory: SessionFactory, original: Original, tmp_path: Path
) -> None:
    before = picture(session_factory, original.federation_id)
    archive = export(session_factory, original)
    wipe(session_factory)
    elsewhere = open_blob_store((tmp_path / "elsewhere").as_uri())
    made = bring_in(session_factory, elsewhere, archive)
    assert (made.federation_id, made.is_copy) == (original.federation_id, False)
    assert (made.num_clients, made.num_runs, made.num_blobs) == (2, 2, 7)
    after = picture(session_factory, made.federation_id)
    for name in ("federations", "clients", "memberships", "attempts", "metrics", "blobs"):
        assert before[name]
        assert after[name] == before[name], name
    for name in ("rounds", "client_updates"):  # the first ones are of the completed run
        num_done = len([row for row in before[name] if row["status"] in {"closed", "accepted"}])
        assert num_done > 0
        assert after[name][:num_done] == before[name][:num_done], name
    assert after["events"][:1] == before["events"], "and then why the other run has ended"
    assert after["runs"][0] == before["runs"][0]
    with session_factory() as session:
        run = session.get_one(Run, original.rows.run_id)
        assert run.state_sha256 is not None
        assert elsewhere.read(run.state_sha256) == b"final state" * 1000
        federation = session.get_one(Federation, made.federation_id)
        assert federation.probe_set_sha256 == run.probe_set_sha256 is not None
        assert elsewhere.read(federation.probe_set_sha256) == PROBES
        assert federation.probe_set_by is None, "users stay where they are"
        adapters = session.scalars(
            select(ClientUpdate.adapter_sha256).where(ClientUpdate.adapter_sha256.is_not(None))
        ).all()
        assert {elsewhere.read(sha) for sha in adapters if sha} == {b"adapter 0", b"adapter 1"}
        assert session.scalar(select(func.count()).select_from(Token)) == 0


def test_a_run_that_was_under_way_is_ended_and_can_be_resumed_elsewhere(
    session_factory: SessionFactory, original: Original, store: BlobStore
) -> None:
    archive = export(session_factory, original)
    wipe(session_factory)
    bring_in(session_factory, store, archive)
    with session_factory() as session:
        run = session.get_one(Run, original.under_way.id)
        assert (run.status, run.copied_from) == (RunStatus.FAILED, None)
        assert run.error is not None
        assert "Resume it" in run.error
        jobs = resume_run(session, run.id, "ada")
        assert jobs, "its open round goes on"


def test_beside_the_original_it_is_a_copy(
    session_factory: SessionFactory,
    original: Original,
    store: BlobStore,
    admin: Caller,
) -> None:
    before = picture(session_factory, original.federation_id)
    made = bring_in(session_factory, store, export(session_factory, original))
    assert made.is_copy
    assert made.federation_id != original.federation_id
    assert picture(session_factory, original.federation_id) == before, "the original is untouched"
    after = picture(session_factory, made.federation_id)
    assert after["metrics"] == before["metrics"]
    assert after["events"][0]["message"] == before["events"][0]["message"], "ids in texts too"
    with session_factory() as session:
        names = session.scalars(select(Federation.name).order_by(Federation.id)).all()
        assert sorted(names)[1] == sorted(names)[0] + " (2)"
        copies = session.scalars(
            select(Run).where(Run.federation_id == made.federation_id).order_by(Run.id)
        ).all()
        assert [run.copied_from for run in copies] == [original.rows.run_id, original.under_way.id]
        report = session.scalars(select(Round.report).where(Round.run_id == copies[0].id)).one()
        event = session.scalars(select(Event).where(Event.run_id == copies[0].id)).one()
        assert report == {f"weight/{event.client_id}": 0.25}
        assert event.data["who"] == str(event.client_id)
        assert event.client_id not in original.rows.client_ids
    refused = problem(admin.post(f"/runs/{copies[1].id}/resume"), 409, "run_is_copy")
    assert str(original.under_way.id) in refused["detail"]
    assert admin.post(f"/runs/{copies[0].id}/clone", {}).status_code == 201
    again = bring_in(session_factory, store, export(session_factory, original))
    assert again.name.endswith(" (3)")


def test_over_http(
    session: Session, original: Original, admin: Caller, operator: Caller, blob_store: BlobStore
) -> None:
    for page in original.store.objects():  # the application has a store of its own
        for entry in page:
            if entry.sha256 is not None:
                blob_store.put(original.store.read(entry.sha256), "text/plain")
    path = f"/federations/{original.federation_id}/archive"
    assert operator.get(path).status_code in {403, 404}
    archive = admin.get(path)
    assert archive.status_code == 200
    assert "attachment" in archive.headers["content-disposition"]
    zipped = {"Content-Type": "application/zip"}
    made = admin.post("/federations/import", content=archive.content, headers=zipped)
    assert made.status_code == 201, made.text
    assert made.json()["is_copy"] is True
    assert admin.get(f"/federations/{made.json()['federation_id']}").json()["num_clients"] == 2
    problem(
        admin.post("/federations/import", content=b"no zip", headers=zipped), 422, "archive_refused"
    )
    problem(
        admin.post("/federations/import", content=b"", headers={}), 415, "unsupported_media_type"
    )
    actions = session.scalars(select(AuditEntry.action).order_by(AuditEntry.id)).all()
    assert [a for a in actions if a.startswith("federation.")] == [
        "federation.export",
        "federation.import",
    ]
