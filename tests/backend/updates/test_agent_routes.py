"""What the platform takes from agents, and what it refuses."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import pytest
import torch
from redis import Redis
from sqlalchemy import Engine, func, select, update
from sqlalchemy.orm import Session

from backend.contracts.agent import SHARED_MEDIA_TYPE
from backend.contracts.enums import EventKind, Execution, RoundKind, RoundStatus, UpdateStatus
from backend.contracts.metrics import MetricName
from backend.db.ids import new_id
from backend.db.models import Blob, Client, ClientUpdate, Event, Metric, Round, Run
from backend.db.session import SessionFactory
from backend.leases import expire
from backend.settings import Settings
from backend.storage import BlobStore, save_blob
from tests.backend.rows import OpenRun, add_open_run
from tests.factories import Caller, make_client, problem, unchanged
from worker.federated import types
from worker.federated.wire import encode_private, encode_update

PLAN = b"the plan" * 100_000
SAFETENSORS = {"Content-Type": SHARED_MEDIA_TYPE}
DECLARED = {
    "execution": "remote",
    "dataset": None,
    "modules": {"q": {"in_features": 128, "out_features": 128}},
    "num_examples": 8,
}


@dataclass(frozen=True)
class Remote:
    """A remote client whose update waits; its agent speaks with `caller`."""

    caller: Caller
    client_id: UUID
    rows: OpenRun

    @property
    def path(self) -> str:
        return f"/agent/updates/{self.rows.update_ids[0]}"

    def lease(self) -> dict[str, Any]:
        response = self.caller.post("/agent/lease", {"agent": "here"})
        assert response.status_code == 200, response.text
        work = response.json()["work"]
        assert work is not None
        return dict(work)

    def upload(self, content: bytes, fence: int = 1) -> Any:
        return self.caller.put(
            f"{self.path}/shared?fence={fence}", content=content, headers=SAFETENSORS
        )

    def finish(self, sha256: str | None, fence: int = 1, **metrics: float) -> Any:
        body = {"fence": fence, "metrics": metrics, "shared_sha256": sha256}
        return self.caller.post(f"{self.path}/result", body)


@pytest.fixture
def remote(
    operator: Caller, session: Session, blob_store: BlobStore, broker: Redis
) -> Iterator[Remote]:
    """The rows' two remote clients; the first one's credential is that of a registered client."""
    client, caller = make_client(operator, **DECLARED)
    rows = add_open_run(session, execution=Execution.REMOTE)
    ref = save_blob(session, blob_store, PLAN, SHARED_MEDIA_TYPE)
    session.execute(
        update(ClientUpdate)
        .where(ClientUpdate.id == rows.update_ids[0])
        .values(client_id=UUID(client["id"]), plan_sha256=ref.sha256)
    )
    session.commit()
    yield Remote(caller, UUID(client["id"]), rows)


def shared(client_id: UUID, value: float = 1.0, /, **changes: Any) -> bytes:
    header = {"client_id": str(client_id), "round_number": 1, "num_examples": 8, **changes}
    return encode_update(
        types.ClientUpdate(
            **header,
            shared={"slots/q": torch.full((2, 2), value)},
            private={"A": torch.full((64,), 3.0)},
            metrics={},
        )
    )


def row_of(factory: SessionFactory, update_id: UUID) -> ClientUpdate:
    with factory() as session:
        return session.get_one(ClientUpdate, update_id)


def events_of(factory: SessionFactory, kind: EventKind) -> list[Event]:
    with factory() as session:
        return list(session.scalars(select(Event).where(Event.kind == kind)))


def let_expire(factory: SessionFactory, update_id: UUID) -> None:
    with factory() as session:
        session.execute(
            update(ClientUpdate)
            .where(ClientUpdate.id == update_id)
            .values(lease_expires_at=func.now() - func.make_interval(0, 0, 0, 0, 0, 0, 1))
        )
        session.commit()
        assert expire(session, update_id, 3) == []
        session.commit()


def test_work_is_leased_with_all_that_training_needs(
    remote: Remote, settings: Settings, session_factory: SessionFactory
) -> None:
    work = remote.lease()
    assert work["client_update_id"] == str(remote.rows.update_ids[0])
    assert work["run_id"] == str(remote.rows.run_id)
    assert (work["round_number"], work["kind"], work["fence"]) == (1, "train", 1)
    assert work["lease_seconds"] == settings.lease_seconds
    assert work["strategy"]["name"] == "local_only"
    assert work["training"]["local_steps"] == 2
    assert work["plan_sha256"] == hashlib.sha256(PLAN).hexdigest()
    assert work["plan_size_bytes"] == len(PLAN)
    assert row_of(session_factory, remote.rows.update_ids[0]).status is UpdateStatus.TRAINING
    assert events_of(session_factory, EventKind.ATTEMPT_STARTED)[0].data["worker"] == "agent here"
    again = remote.caller.post("/agent/lease", {}).json()
    assert again == {"work": None}, "leased twice"


def test_the_oldest_round_comes_first_and_only_of_running_runs(
    remote: Remote, session: Session, engine: Engine
) -> None:
    later = add_open_run(session, num_clients=1, execution=Execution.REMOTE)
    session.execute(
        update(ClientUpdate)
        .where(ClientUpdate.id == later.update_ids[0])
        .values(client_id=remote.client_id)
    )
    session.commit()
    assert remote.lease()["run_id"] == str(remote.rows.run_id)
    session.execute(update(Run).where(Run.id == later.run_id).values(status="cancelled"))
    session.commit()
    with unchanged(engine):
        assert remote.caller.post("/agent/lease", {}).json() == {"work": None}


def test_users_and_managed_clients_get_no_work(operator: Caller, engine: Engine) -> None:
    _, managed = make_client(operator)
    with unchanged(engine):
        problem(operator.post("/agent/lease", {}), 403, "forbidden")
        problem(managed.post("/agent/lease", {}), 403, "client_is_managed")


def test_the_plan_is_streamed_as_announced(remote: Remote) -> None:
    response = remote.caller.get(f"{remote.path}/plan")
    assert response.content == PLAN
    assert response.headers["content-length"] == str(len(PLAN))
    assert response.headers["content-type"] == SHARED_MEDIA_TYPE


def test_another_clients_update_does_not_exist(
    remote: Remote, operator: Caller, engine: Engine
) -> None:
    remote.lease()
    _, stranger = make_client(operator, **DECLARED)
    foreign = Remote(stranger, remote.client_id, remote.rows)
    missing = f"/agent/updates/{new_id()}"
    with unchanged(engine):
        for path in (foreign.path, missing):
            problem(stranger.get(f"{path}/plan"), 404, "not_found")
            beat = {"fence": 1, "stage": "training", "step": 1, "num_steps": 2}
            problem(stranger.post(f"{path}/heartbeat", beat), 404, "not_found")
            upload = stranger.put(
                f"{path}/shared?fence=1", content=shared(remote.client_id), headers=SAFETENSORS
            )
            problem(upload, 404, "not_found")
            problem(stranger.post(f"{path}/result", {"fence": 1}), 404, "not_found")
            failure = {"fence": 1, "reason": "sabotage"}
            problem(stranger.post(f"{path}/failure", failure), 404, "not_found")
            problem(stranger.post(f"{path}/release", {"fence": 1}), 404, "not_found")


def test_a_managed_clients_update_is_out_of_reach_of_its_credential(
    operator: Caller, session: Session, engine: Engine
) -> None:
    client, caller = make_client(operator)
    rows = add_open_run(session)
    session.execute(
        update(ClientUpdate)
        .where(ClientUpdate.id == rows.update_ids[0])
        .values(client_id=UUID(client["id"]))
    )
    session.commit()
    with unchanged(engine):
        problem(caller.get(f"/agent/updates/{rows.update_ids[0]}/plan"), 404, "not_found")


def test_a_heartbeat_shows_progress_and_a_stale_one_is_told_to_stop(
    remote: Remote, session_factory: SessionFactory
) -> None:
    remote.lease()
    before = row_of(session_factory, remote.rows.update_ids[0]).lease_expires_at
    beat = {
        "fence": 1,
        "stage": "training",
        "step": 3,
        "num_steps": 9,
        "values": {"train_loss": 1.5},
    }
    assert remote.caller.post(f"{remote.path}/heartbeat", beat).status_code == 204
    row = row_of(session_factory, remote.rows.update_ids[0])
    assert (row.stage, row.step, row.num_steps) == ("training", 3, 9)
    assert before is not None
    assert row.lease_expires_at is not None
    assert row.lease_expires_at > before
    with session_factory() as session:
        point = session.scalars(select(Metric)).one()
    assert (point.client_id, point.step, point.value) == (remote.client_id, 3, 1.5)
    stale = remote.caller.post(f"{remote.path}/heartbeat", {**beat, "fence": 2})
    problem(stale, 409, "lease_lost")
    let_expire(session_factory, remote.rows.update_ids[0])
    problem(remote.caller.post(f"{remote.path}/heartbeat", beat), 409, "lease_lost")


def test_the_last_result_of_a_round_sends_the_aggregation(
    remote: Remote, session: Session, session_factory: SessionFactory, broker: Redis
) -> None:
    session.execute(
        update(ClientUpdate)
        .where(ClientUpdate.id == remote.rows.update_ids[1])
        .values(status=UpdateStatus.ACCEPTED)
    )
    session.commit()
    remote.lease()
    receipt = remote.upload(shared(remote.client_id))
    assert receipt.status_code == 200, receipt.text
    assert receipt.json() == {
        "sha256": hashlib.sha256(shared(remote.client_id)).hexdigest(),
        "size_bytes": len(shared(remote.client_id)),
    }
    finished = remote.finish(receipt.json()["sha256"], sparsity=0.25)
    assert (finished.status_code, finished.json()) == (200, {"is_repeated": False})
    row = row_of(session_factory, remote.rows.update_ids[0])
    assert (row.status, row.shared_sha256) == (UpdateStatus.ACCEPTED, receipt.json()["sha256"])
    assert row.private_sha256 is None
    with session_factory() as reading:
        assert reading.get_one(Round, remote.rows.round_id).status is RoundStatus.AGGREGATING
        sparsity = select(Metric.value).where(Metric.name == MetricName.SPARSITY)
        assert reading.scalars(sparsity).one() == 0.25
    assert broker.llen("control") == 1


def test_the_same_result_twice_is_taken_once(
    remote: Remote, session_factory: SessionFactory, engine: Engine
) -> None:
    remote.lease()
    sha256 = remote.upload(shared(remote.client_id)).json()["sha256"]
    assert remote.finish(sha256).json() == {"is_repeated": False}
    with unchanged(engine):
        assert remote.finish(sha256).json() == {"is_repeated": True}
    problem(remote.finish("0" * 64), 409, "lease_lost")
    assert len(events_of(session_factory, EventKind.UPDATE_ACCEPTED)) == 1


def test_a_late_result_is_refused_and_shown_once(
    remote: Remote, session_factory: SessionFactory
) -> None:
    remote.lease()
    sha256 = remote.upload(shared(remote.client_id)).json()["sha256"]
    let_expire(session_factory, remote.rows.update_ids[0])
    assert remote.lease()["fence"] == 2
    for _ in range(2):
        problem(remote.finish(sha256, fence=1), 409, "lease_lost")
    refused = events_of(session_factory, EventKind.UPDATE_REFUSED)
    assert [event.data["attempt"] for event in refused] == [1]
    assert refused[0].client_id == remote.client_id
    problem(remote.upload(shared(remote.client_id), fence=1), 409, "lease_lost")
    problem(remote.finish(sha256, fence=7), 409, "lease_lost")
    assert len(events_of(session_factory, EventKind.UPDATE_REFUSED)) == 1, "no such attempt"
    assert remote.upload(shared(remote.client_id, 2.0), fence=2).status_code == 200
    row = row_of(session_factory, remote.rows.update_ids[0])
    assert (row.status, row.fence) == (UpdateStatus.TRAINING, 2)


def test_a_result_needs_the_matrices_that_this_attempt_uploaded(
    remote: Remote, engine: Engine
) -> None:
    remote.lease()
    with unchanged(engine):
        problem(remote.finish(None), 422, "shared_missing")
        problem(remote.finish(hashlib.sha256(PLAN).hexdigest()), 422, "shared_missing")


def test_the_deliver_round_takes_no_matrices(remote: Remote, session: Session) -> None:
    session.execute(update(Round).values(kind=RoundKind.DELIVER))
    session.commit()
    remote.lease()
    problem(remote.upload(shared(remote.client_id)), 422, "shared_unexpected")
    problem(remote.finish("0" * 64), 422, "shared_unexpected")
    assert remote.finish(None, accuracy_delivered=0.5).status_code == 200


@pytest.mark.parametrize("media_type", ["application/octet-stream", "application/json", None])
def test_another_media_type_is_refused(
    remote: Remote, engine: Engine, media_type: str | None
) -> None:
    remote.lease()
    headers = {} if media_type is None else {"Content-Type": media_type}
    with unchanged(engine):
        response = remote.caller.put(
            f"{remote.path}/shared?fence=1", content=shared(remote.client_id), headers=headers
        )
        problem(response, 415, "unsupported_media_type")


@pytest.mark.parametrize("announced", [True, False])
def test_too_many_bytes_are_refused(
    remote: Remote, engine: Engine, settings: Settings, announced: bool, monkeypatch: Any
) -> None:
    monkeypatch.setattr(settings, "max_update_bytes", 1000)
    remote.lease()
    content: Any = bytes(1001) if announced else iter([bytes(600), bytes(401)])
    with unchanged(engine):
        answer = problem(remote.upload(content), 413, "too_large")
    assert "FEDBRAID_MAX_UPDATE_BYTES" in answer["detail"]


def test_bytes_that_are_no_safetensors_are_refused_and_not_stored(
    remote: Remote, session_factory: SessionFactory, blob_store: BlobStore
) -> None:
    remote.lease()
    garbage = b"\x80\x04garbage" * 50
    problem(remote.upload(garbage), 422, "shared_refused")
    problem(remote.upload(shared(remote.client_id)[:-1]), 422, "shared_refused")
    codes = [event.data["code"] for event in events_of(session_factory, EventKind.UPDATE_REFUSED)]
    assert codes == ["shared_refused"] * 2
    assert not blob_store.exists(hashlib.sha256(garbage).hexdigest())


def test_a_stale_attempt_is_refused_before_its_body_is_read(remote: Remote) -> None:
    remote.lease()
    problem(remote.upload(b"whatever", fence=2), 409, "lease_lost")


@pytest.mark.parametrize("value", ["NaN", "Infinity"])
def test_metrics_that_are_not_finite_are_refused(
    remote: Remote, engine: Engine, value: str
) -> None:
    remote.lease()
    body = f'{{"fence": 1, "metrics": {{"sparsity": {value}}}}}'.encode()
    with unchanged(engine):
        response = remote.caller.request(
            "POST",
            f"{remote.path}/result",
            content=body,
            headers={"Content-Type": "application/json"},
        )
        problem(response, 422, "invalid")


def test_a_client_may_not_say_what_the_server_measures(remote: Remote, engine: Engine) -> None:
    remote.lease()
    with unchanged(engine):
        forged = problem(remote.finish("0" * 64, contribution=1.0), 422, "invalid")
    assert "contribution: measured by the server, leave it out" in forged["errors"][0]["message"]


def test_a_failure_ends_the_run_with_the_clients_reason(
    remote: Remote, session_factory: SessionFactory
) -> None:
    remote.lease()
    failure = {"fence": 1, "reason": "The device has too little memory."}
    for _ in range(2):
        assert remote.caller.post(f"{remote.path}/failure", failure).status_code == 204
    with session_factory() as session:
        run = session.get_one(Run, remote.rows.run_id)
        client = session.get_one(Client, remote.client_id)
    assert run.status == "failed"
    assert run.error == f"{client.name} failed: The device has too little memory."
    problem(
        remote.caller.post(f"{remote.path}/failure", {**failure, "fence": 2}), 409, "lease_lost"
    )


def test_work_that_is_given_back_waits_again_without_a_job(
    remote: Remote, session_factory: SessionFactory, broker: Redis
) -> None:
    remote.lease()
    assert remote.caller.post(f"{remote.path}/release", {"fence": 1}).status_code == 204
    assert row_of(session_factory, remote.rows.update_ids[0]).status is UpdateStatus.PENDING
    assert broker.llen("train") == 0
    problem(remote.caller.post(f"{remote.path}/release", {"fence": 1}), 409, "lease_lost")
    assert remote.lease()["fence"] == 2


def test_leases_and_heartbeats_move_the_last_sign_of_life(
    remote: Remote, session_factory: SessionFactory
) -> None:
    def last_seen() -> Any:
        with session_factory() as session:
            return session.get_one(Client, remote.client_id).last_seen_at

    assert last_seen() is None
    remote.lease()
    leased = last_seen()
    beat = {"fence": 1, "stage": "training", "step": 0, "num_steps": 2}
    remote.caller.post(f"{remote.path}/heartbeat", beat)
    assert last_seen() > leased


def test_only_plan_and_shared_matrices_are_stored(remote: Remote, session: Session) -> None:
    remote.lease()
    sha256 = remote.upload(shared(remote.client_id)).json()["sha256"]
    remote.finish(sha256)
    stored = set(session.scalars(select(Blob.sha256)).all())
    assert stored == {"0" * 64, hashlib.sha256(PLAN).hexdigest(), sha256}


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"client_id": "another"}, "update_wrong_client"),
        ({"round_number": 2}, "update_wrong_round"),
        ({"num_examples": 9}, "update_wrong_weight"),
    ],
)
def test_an_update_of_something_else_is_refused_and_shown(
    remote: Remote, session_factory: SessionFactory, changes: dict[str, Any], code: str
) -> None:
    remote.lease()
    content = shared(remote.client_id, **changes)
    answer = problem(remote.upload(content), 422, code)
    [event] = events_of(session_factory, EventKind.UPDATE_REFUSED)
    assert (event.client_id, event.data["code"]) == (remote.client_id, code)
    assert answer["detail"] in event.message
    assert row_of(session_factory, remote.rows.update_ids[0]).shared_sha256 is None
    assert remote.upload(shared(remote.client_id)).status_code == 200, "the right one still counts"


def test_a_plan_is_no_update(remote: Remote) -> None:
    remote.lease()
    private = encode_private({"A": torch.ones(2)})
    problem(remote.upload(private), 422, "update_wrong_kind")
