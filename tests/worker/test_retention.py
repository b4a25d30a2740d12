"""A real run that fails, loses what retention takes, and goes on as if nothing had happened."""

from datetime import timedelta

import pytest
from sqlalchemy import func, select, update

from backend.contracts.enums import RoundStatus, RunStatus
from backend.contracts.jobs import CloseRound, Job, OpenRound
from backend.contracts.params.h2tune import H2TuneParams
from backend.contracts.params.lora import LocalOnlyParams
from backend.db.models import Blob, ClientUpdate, Round, Run
from backend.lifecycle import fail_run
from backend.resumption import resume_run
from backend.storage.garbage import collect_garbage
from backend.storage.retention import RetentionPolicy, give_up_expired
from tests.worker.test_rounds import do, drain, make_clients, platform, queue_run, sent, state_of
from worker.platform import Platform

__all__ = ["platform", "sent"]  # fixtures


def clear(platform: Platform) -> int:
    """Retention and a garbage collection, days after everything; gives the blobs that went."""
    with platform.session_factory() as session:
        session.execute(update(Run).values(ended_at=Run.ended_at - timedelta(days=2)))
        session.execute(update(Blob).values(last_stored_at=func.now() - timedelta(days=2)))
        session.commit()
    give_up_expired(platform.session_factory, RetentionPolicy(days=1, rounds=0))
    garbage = collect_garbage(platform.session_factory, platform.store, timedelta(days=1))
    return garbage.num_blobs


def test_a_failed_run_resumes_and_ends_like_an_undisturbed_one(
    platform: Platform, sent: list[Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    clients = make_clients(platform)
    run_ids = [queue_run(platform, H2TuneParams(), 3, clients) for _ in range(2)]
    sent.append(OpenRound(run_id=run_ids[0]))
    drain(platform, sent)
    states = [state_of(platform, run_ids[0]).state_sha256]

    sent.append(OpenRound(run_id=run_ids[1]))
    while True:  # until the second round has its updates, but no aggregation
        job = sent.pop(0)
        with platform.session_factory() as session:
            rounds = session.scalars(select(Round).where(Round.run_id == run_ids[1])).all()
        aggregating = [r for r in rounds if r.status is RoundStatus.AGGREGATING]
        if isinstance(job, CloseRound) and aggregating and aggregating[0].round_number == 2:
            break
        do(platform, job)
    sent.clear()
    with platform.session_factory() as session:
        fail_run(session, run_ids[1], "The power went.")
        session.commit()
    assert clear(platform) > 0
    with platform.session_factory() as session:
        gone = session.scalars(
            select(ClientUpdate.id).where(
                ClientUpdate.plan_sha256.is_(None), ClientUpdate.round_id == rounds[0].id
            )
        ).all()
        assert len(gone) == 2, "the first round of the failed run gave its bytes up"
        jobs = resume_run(session, run_ids[1], "ada")
        session.commit()
    assert jobs is not None
    sent.extend(jobs)
    drain(platform, sent)
    run = state_of(platform, run_ids[1])
    assert (run.status, run.error) == (RunStatus.COMPLETED, None)
    states.append(run.state_sha256)
    assert states[0] == states[1], "bit for bit"
    clear(platform)
    with platform.session_factory() as session:
        adapters = session.scalars(
            select(ClientUpdate.adapter_sha256).where(ClientUpdate.adapter_sha256.is_not(None))
        ).all()
    assert len(adapters) == 4
    assert all(platform.store.read(sha256) for sha256 in [*adapters, states[0]] if sha256)


def test_a_full_federation_opens_no_round_and_goes_on_with_more_room(
    platform: Platform, sent: list[Job]
) -> None:
    run_id = queue_run(platform, LocalOnlyParams(), 1)
    with platform.session_factory() as session:
        session.get_one(Run, run_id).federation.quota_bytes = 0
        session.commit()
    sent.append(OpenRound(run_id=run_id))
    drain(platform, sent)
    run = state_of(platform, run_id)
    assert run.status is RunStatus.FAILED
    assert run.error is not None
    assert "may store 0: it is full" in run.error
    with platform.session_factory() as session:
        session.get_one(Run, run_id).federation.quota_bytes = None
        jobs = resume_run(session, run_id, "ada")
        session.commit()
    sent.extend(jobs or [])
    drain(platform, sent)
    assert state_of(platform, run_id).status is RunStatus.COMPLETED
