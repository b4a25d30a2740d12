"""Attempts: one claim at a time, results only from the newest one, one winner closes the round."""

import threading
from datetime import UTC, datetime, timedelta
from uuid import UUID

from sqlalchemy import func, select, update

from backend import leases
from backend.contracts.enums import AttemptOutcome, Execution, RoundStatus, RunStatus, UpdateStatus
from backend.contracts.jobs import CloseRound, RunClientUpdate
from backend.contracts.metrics import MetricName
from backend.db.models import Attempt, ClientUpdate, Metric, Round, Run
from backend.db.session import SessionFactory
from backend.leases import Claim, Result
from backend.lifecycle import cancel_run
from tests.backend.rows import add_open_run

RESULT = Result(metrics={MetricName.TRAIN_LOSS: 0.5})


def take(session_factory: SessionFactory, update_id: UUID, lease_seconds: float = 30) -> Claim:
    with session_factory() as session:
        claim = leases.claim(session, update_id, "worker", lease_seconds)
        session.commit()
    assert claim is not None
    return claim


def run_out(session_factory: SessionFactory, update_id: UUID) -> None:
    """Moves a lease into the past, as if its worker had been silent."""
    with session_factory() as session:
        session.execute(
            update(ClientUpdate)
            .where(ClientUpdate.id == update_id)
            .values(lease_expires_at=func.now() - timedelta(seconds=1))
        )
        session.commit()


def test_a_job_delivered_twice_gives_one_claim(session_factory: SessionFactory) -> None:
    with session_factory() as session:
        rows = add_open_run(session)
    first = take(session_factory, rows.update_ids[0])
    with session_factory() as session:
        assert leases.claim(session, rows.update_ids[0], "other", 30) is None
    assert first.fence == 1


def test_many_workers_at_once_get_one_claim(session_factory: SessionFactory) -> None:
    with session_factory() as session:
        rows = add_open_run(session)
    barrier = threading.Barrier(6)
    claims: list[Claim | None] = []

    def race(name: str) -> None:
        with session_factory() as session:
            barrier.wait()
            claims.append(leases.claim(session, rows.update_ids[0], name, 30))
            session.commit()

    threads = [threading.Thread(target=race, args=(f"worker-{n}",)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(claim is not None for claim in claims) == 1


def test_two_clients_that_finish_together_close_the_round_once(
    session_factory: SessionFactory,
) -> None:
    for _ in range(5):
        with session_factory() as session:
            rows = add_open_run(session, num_clients=2)
        claims = [take(session_factory, update_id) for update_id in rows.update_ids]
        barrier = threading.Barrier(2)
        sent: list[object] = []

        def finish(
            claim: Claim, barrier: threading.Barrier = barrier, sent: list[object] = sent
        ) -> None:
            with session_factory() as session:
                barrier.wait()
                jobs = leases.accept(session, claim, RESULT)
                session.commit()
                assert jobs is not None
                sent.extend(jobs)

        threads = [threading.Thread(target=finish, args=(claim,)) for claim in claims]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sent == [CloseRound(round_id=rows.round_id)]
        with session_factory() as session:
            assert session.get_one(Round, rows.round_id).status is RoundStatus.AGGREGATING


def test_a_result_is_taken_once_with_its_metrics(session_factory: SessionFactory) -> None:
    with session_factory() as session:
        rows = add_open_run(session)
    claim = take(session_factory, rows.update_ids[0])
    with session_factory() as session:
        assert leases.accept(session, claim, RESULT) == []
        session.commit()
        assert leases.accept(session, claim, RESULT) is None
        session.commit()
        waited = Metric.name == MetricName.SECONDS_WAIT
        assert session.scalars(select(Metric.value).where(waited)).one() >= 0
        metric = session.scalars(select(Metric).where(~waited)).one()
        assert (metric.name, metric.value, metric.step) == (MetricName.TRAIN_LOSS, 0.5, None)
        assert session.scalars(select(Attempt)).one().outcome is AttemptOutcome.ACCEPTED


def test_a_worker_thought_dead_cannot_overwrite(session_factory: SessionFactory) -> None:
    with session_factory() as session:
        rows = add_open_run(session)
    update_id = rows.update_ids[0]
    old = take(session_factory, update_id)
    run_out(session_factory, update_id)
    with session_factory() as session:
        jobs = leases.expire(session, update_id, max_attempts=3)
        session.commit()
    assert jobs == [RunClientUpdate(client_update_id=update_id)]
    new = take(session_factory, update_id)
    assert new.fence == old.fence + 1
    with session_factory() as session:
        assert not leases.heartbeat(session, old, 30, stage="training", step=1, num_steps=2)
        assert leases.accept(session, old, RESULT) is None
        leases.fail(session, old, "boom")
        session.commit()
        assert session.get_one(Run, rows.run_id).status is RunStatus.RUNNING
        assert leases.accept(session, new, RESULT) is not None
        session.commit()
        outcomes = session.scalars(select(Attempt.outcome).order_by(Attempt.number)).all()
    assert outcomes == [AttemptOutcome.EXPIRED, AttemptOutcome.ACCEPTED]


def test_a_heartbeat_moves_the_lease_and_shows_progress(session_factory: SessionFactory) -> None:
    with session_factory() as session:
        rows = add_open_run(session)
    claim = take(session_factory, rows.update_ids[0], lease_seconds=5)
    with session_factory() as session:
        assert leases.heartbeat(session, claim, 500, stage="training", step=3, num_steps=9)
        session.commit()
        row = session.get_one(ClientUpdate, claim.client_update_id)
    assert (row.stage, row.step, row.num_steps) == ("training", 3, 9)
    assert row.lease_expires_at is not None
    assert row.lease_expires_at > datetime.now(UTC) + timedelta(seconds=400)


def test_expiring_too_early_changes_nothing(session_factory: SessionFactory) -> None:
    with session_factory() as session:
        rows = add_open_run(session)
    take(session_factory, rows.update_ids[0])
    with session_factory() as session:
        assert leases.expire(session, rows.update_ids[0], max_attempts=3) == []
        assert leases.expire(session, rows.update_ids[1], max_attempts=3) == []
        session.commit()
        assert session.get_one(ClientUpdate, rows.update_ids[0]).status is UpdateStatus.TRAINING


def test_the_last_lost_attempt_fails_the_run_with_a_sentence(
    session_factory: SessionFactory,
) -> None:
    with session_factory() as session:
        rows = add_open_run(session)
    for _ in range(2):
        take(session_factory, rows.update_ids[0])
        run_out(session_factory, rows.update_ids[0])
        with session_factory() as session:
            jobs = leases.expire(session, rows.update_ids[0], max_attempts=2)
            session.commit()
    assert jobs == []
    with session_factory() as session:
        run = session.get_one(Run, rows.run_id)
        assert run.status is RunStatus.FAILED
        assert run.error is not None
        assert "gave no sign of life in 2 attempts at round 1" in run.error


def test_a_released_attempt_does_not_count_as_lost(session_factory: SessionFactory) -> None:
    with session_factory() as session:
        rows = add_open_run(session)
    update_id = rows.update_ids[0]
    for _ in range(3):
        claim = take(session_factory, update_id)
        with session_factory() as session:
            assert leases.release(session, claim) == [RunClientUpdate(client_update_id=update_id)]
            session.commit()
    take(session_factory, update_id)
    run_out(session_factory, update_id)
    with session_factory() as session:
        assert leases.expire(session, update_id, max_attempts=2) != []
        session.commit()


def test_a_cancelled_run_takes_no_results(session_factory: SessionFactory) -> None:
    with session_factory() as session:
        rows = add_open_run(session)
    claim = take(session_factory, rows.update_ids[0])
    with session_factory() as session:
        assert cancel_run(session, rows.run_id, "ada")
        session.commit()
        assert not leases.heartbeat(session, claim, 30, stage="training", step=1, num_steps=2)
        assert leases.accept(session, claim, RESULT) is None


def test_a_lost_attempt_of_a_remote_client_waits_for_its_agent(
    session_factory: SessionFactory,
) -> None:
    with session_factory() as session:
        rows = add_open_run(session, execution=Execution.REMOTE)
    take(session_factory, rows.update_ids[0])
    run_out(session_factory, rows.update_ids[0])
    with session_factory() as session:
        assert leases.expire(session, rows.update_ids[0], max_attempts=3) == []
        session.commit()
        assert session.get_one(ClientUpdate, rows.update_ids[0]).status is UpdateStatus.PENDING
