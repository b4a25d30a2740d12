"""Rounds that close without everybody: quorum, deadline, stragglers, in a real database."""

from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import func, select, update

from backend import leases
from backend.barrier import busy_clients, end_carried_updates, notice_deadline
from backend.contracts.enums import EventKind, RoundKind, RoundStatus, RunStatus, UpdateStatus
from backend.contracts.jobs import CloseRound, Job
from backend.contracts.round_policy import RoundPolicy
from backend.db.models import ClientUpdate, Event, Round, Run
from backend.db.session import SessionFactory
from backend.lifecycle import change_round, lock_run
from backend.settings import Settings
from backend.sweep import sweep_once
from tests.backend.rows import OpenRun, add_open_run
from tests.backend.test_leases import RESULT, run_out, take

DROP = {"min_clients": 2, "deadline_seconds": 60.0, "stragglers": "drop"}
CARRY = {**DROP, "stragglers": "carry_over"}


@pytest.fixture(autouse=True)
def sent(monkeypatch: pytest.MonkeyPatch) -> list[Job]:
    """Jobs that the sweep would have sent to the broker."""
    jobs: list[Job] = []
    monkeypatch.setattr("backend.jobs.enqueue", jobs.append)
    return jobs


def open_run(session_factory: SessionFactory, num_clients: int = 3, **policy: Any) -> OpenRun:
    """Round 1 of a run with this policy, as the opening makes it."""
    with session_factory() as session:
        rows = add_open_run(session, num_clients)
        wanted = RoundPolicy.model_validate(policy)
        run, round_ = session.get_one(Run, rows.run_id), session.get_one(Round, rows.round_id)
        run.round_policy = wanted.model_dump(mode="json")
        round_.quorum = wanted.quorum(num_clients)
        if wanted.deadline_seconds is not None:
            round_.deadline_at = func.now() + timedelta(seconds=wanted.deadline_seconds)
        session.commit()
    return rows


def finish(session_factory: SessionFactory, update_id: UUID) -> list[Job] | None:
    return hand_in(session_factory, take(session_factory, update_id))


def hand_in(session_factory: SessionFactory, claim: leases.Claim) -> list[Job] | None:
    with session_factory() as session:
        jobs = leases.accept(session, claim, RESULT)
        session.commit()
        return jobs


def fail(session_factory: SessionFactory, update_id: UUID) -> list[Job]:
    claim = take(session_factory, update_id)
    with session_factory() as session:
        jobs = leases.fail(session, claim, "no memory")
        session.commit()
        return jobs


def pass_deadline(session_factory: SessionFactory, rows: OpenRun) -> list[Job]:
    with session_factory() as session:
        session.execute(
            update(Round)
            .where(Round.id == rows.round_id)
            .values(deadline_at=func.now() - timedelta(seconds=1))
        )
        lock_run(session, rows.run_id)
        jobs = notice_deadline(session, rows.round_id)
        session.commit()
        return jobs


def updates(session_factory: SessionFactory, rows: OpenRun) -> list[ClientUpdate]:
    with session_factory() as session:
        return [session.get_one(ClientUpdate, update_id) for update_id in rows.update_ids]


def statuses(session_factory: SessionFactory, rows: OpenRun) -> list[str]:
    return [row.status.value for row in updates(session_factory, rows)]


def run_of(session_factory: SessionFactory, rows: OpenRun) -> Run:
    with session_factory() as session:
        return session.get_one(Run, rows.run_id)


def events(session_factory: SessionFactory, kind: EventKind) -> list[str]:
    with session_factory() as session:
        query = select(Event.message).where(Event.kind == kind).order_by(Event.id)
        return list(session.scalars(query))


@pytest.mark.parametrize(
    ("policy", "participants", "quorum"),
    [
        ({}, 10, 10),
        ({"min_clients": 3}, 10, 3),
        ({"min_fraction": 0.25}, 10, 3),  # 2.5, rounded up
        ({"min_clients": 2, "min_fraction": 0.5}, 10, 5),
        ({"clients_per_round": 4}, 4, 4),
        ({"clients_per_round": 99}, 10, 10),
        ({"client_fraction": 0.3, "min_fraction": 0.5}, 3, 2),
        ({"client_fraction": 0.001}, 1, 1),
    ],
)
def test_how_many_of_ten_take_part_and_are_enough(
    policy: dict[str, Any], participants: int, quorum: int
) -> None:
    wanted = RoundPolicy.model_validate(policy)
    assert wanted.num_participants(10) == participants
    assert wanted.quorum(participants) == quorum


@pytest.mark.parametrize(
    ("policy", "word"),
    [
        ({"clients_per_round": 2, "client_fraction": 0.5}, "give one"),
        ({"stragglers": "drop", "min_clients": 2}, "deadline"),
        ({"stragglers": "carry_over", "deadline_seconds": 5}, "min_clients"),
    ],
)
def test_settings_without_effect_are_refused(policy: dict[str, Any], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        RoundPolicy.model_validate(policy)


def test_a_failing_client_costs_the_round_and_not_the_run(session_factory: SessionFactory) -> None:
    rows = open_run(session_factory, 3, min_clients=2)
    assert fail(session_factory, rows.update_ids[0]) == []
    assert finish(session_factory, rows.update_ids[1]) == []
    assert finish(session_factory, rows.update_ids[2]) == [CloseRound(round_id=rows.round_id)]
    assert [row.aggregated_in for row in updates(session_factory, rows)] == [None, 1, 1]
    [message] = events(session_factory, EventKind.CLIENT_LEFT_OUT)
    assert "failed: no memory Round 1 goes on without" in message
    assert message.endswith("2 updates are enough.")


def test_a_failure_after_all_others_came_closes_the_round(session_factory: SessionFactory) -> None:
    rows = open_run(session_factory, 3, min_fraction=0.5)
    finish(session_factory, rows.update_ids[0])
    finish(session_factory, rows.update_ids[1])
    assert fail(session_factory, rows.update_ids[2]) == [CloseRound(round_id=rows.round_id)]


def test_the_run_fails_when_too_few_can_come(session_factory: SessionFactory) -> None:
    rows = open_run(session_factory, 3, min_clients=2)
    fail(session_factory, rows.update_ids[0])
    fail(session_factory, rows.update_ids[1])
    run = run_of(session_factory, rows)
    assert run.status is RunStatus.FAILED
    assert run.error is not None
    assert run.error.endswith("no memory Round 1 needs 2 updates, and only 1 can come.")
    assert statuses(session_factory, rows) == ["failed", "failed", "cancelled"]


def test_lost_attempts_leave_the_client_out(session_factory: SessionFactory) -> None:
    rows = open_run(session_factory, 2, min_clients=1)
    finish(session_factory, rows.update_ids[1])
    take(session_factory, rows.update_ids[0])
    run_out(session_factory, rows.update_ids[0])
    with session_factory() as session:
        jobs = leases.expire(session, rows.update_ids[0], max_attempts=1)
        session.commit()
    assert jobs == [CloseRound(round_id=rows.round_id)]
    assert run_of(session_factory, rows).status is RunStatus.RUNNING


def test_a_deadline_is_nobodys_business_before_it_passes(session_factory: SessionFactory) -> None:
    rows = open_run(session_factory, **DROP)
    for update_id in rows.update_ids[:2]:
        assert finish(session_factory, update_id) == []
    sweep_once(session_factory, Settings())
    assert statuses(session_factory, rows) == ["accepted", "accepted", "pending"]


def test_the_sweep_closes_a_round_at_its_deadline_and_late_results_are_listed(
    session_factory: SessionFactory, sent: list[Job]
) -> None:
    rows = open_run(session_factory, **DROP)
    late = take(session_factory, rows.update_ids[2])
    for update_id in rows.update_ids[:2]:
        finish(session_factory, update_id)
    with session_factory() as session:
        session.execute(update(Round).values(deadline_at=func.now() - timedelta(seconds=1)))
        session.commit()
    sweep_once(session_factory, Settings())
    sweep_once(session_factory, Settings())
    assert sent == [CloseRound(round_id=rows.round_id)]
    assert statuses(session_factory, rows) == ["accepted", "accepted", "dropped"]
    assert hand_in(session_factory, late) is None
    assert hand_in(session_factory, late) is None
    row = updates(session_factory, rows)[2]
    assert row.aggregated_in is None
    assert row.late_at is not None
    [message] = events(session_factory, EventKind.UPDATE_LATE)
    assert message.endswith("finished round 1 after it had closed: its update is not used.")
    assert len(events(session_factory, EventKind.DEADLINE_PASSED)) == 1


def test_an_overdue_round_waits_for_its_quorum_and_no_longer(
    session_factory: SessionFactory,
) -> None:
    rows = open_run(session_factory, 3, **DROP)
    finish(session_factory, rows.update_ids[0])
    assert pass_deadline(session_factory, rows) == []
    assert run_of(session_factory, rows).status is RunStatus.RUNNING
    assert finish(session_factory, rows.update_ids[1]) == [CloseRound(round_id=rows.round_id)]
    assert statuses(session_factory, rows)[2] == "dropped"


def test_with_wait_a_deadline_only_says_who_is_late(session_factory: SessionFactory) -> None:
    rows = open_run(session_factory, 2, min_clients=1, deadline_seconds=60)
    finish(session_factory, rows.update_ids[0])
    assert pass_deadline(session_factory, rows) == []
    [message] = events(session_factory, EventKind.DEADLINE_PASSED)
    assert "late: client-" in message
    assert finish(session_factory, rows.update_ids[1]) == [CloseRound(round_id=rows.round_id)]


def next_round(
    session_factory: SessionFactory, rows: OpenRun, kind: RoundKind = RoundKind.TRAIN
) -> UUID:
    """Closes round 1 and opens round 2 with a quorum of 1 and without own updates."""
    with session_factory() as session:
        assert change_round(session, rows.round_id, RoundStatus.CLOSED)
        round_ = Round(run_id=rows.run_id, round_number=2, kind=kind, quorum=1)
        session.add(round_)
        session.commit()
        return round_.id


def test_a_carried_update_counts_in_the_next_round(session_factory: SessionFactory) -> None:
    rows = open_run(session_factory, 3, **CARRY)
    for update_id in rows.update_ids[:2]:
        finish(session_factory, update_id)
    assert pass_deadline(session_factory, rows) == [CloseRound(round_id=rows.round_id)]
    assert statuses(session_factory, rows) == ["accepted", "accepted", "pending"]
    with session_factory() as session:
        assert busy_clients(session, rows.run_id) == {rows.client_ids[2]}
    second = next_round(session_factory, rows)
    assert finish(session_factory, rows.update_ids[2]) == [CloseRound(round_id=second)]
    assert [row.aggregated_in for row in updates(session_factory, rows)] == [1, 1, 2]
    with session_factory() as session:
        assert busy_clients(session, rows.run_id) == set()


def test_what_arrives_while_a_round_is_aggregated_waits_for_the_next(
    session_factory: SessionFactory,
) -> None:
    rows = open_run(session_factory, 3, **CARRY)
    for update_id in rows.update_ids[:2]:
        finish(session_factory, update_id)
    pass_deadline(session_factory, rows)
    assert finish(session_factory, rows.update_ids[2]) == []
    assert updates(session_factory, rows)[2].aggregated_in is None
    with session_factory() as session:
        assert busy_clients(session, rows.run_id) == {rows.client_ids[2]}


def test_before_the_delivery_nothing_stays_under_way(session_factory: SessionFactory) -> None:
    rows = open_run(session_factory, 4, **CARRY)
    for update_id in rows.update_ids[:2]:
        finish(session_factory, update_id)
    pass_deadline(session_factory, rows)
    finish(session_factory, rows.update_ids[2])
    with session_factory() as session:
        lock_run(session, rows.run_id)
        end_carried_updates(session, rows.run_id)
        session.commit()
    assert statuses(session_factory, rows) == ["accepted", "accepted", "accepted", "dropped"]
    assert [row.late_at is None for row in updates(session_factory, rows)] == [
        True,
        True,
        False,
        True,
    ]
    assert len(events(session_factory, EventKind.UPDATE_LATE)) == 1


def test_a_late_result_of_another_attempt_is_not_listed(session_factory: SessionFactory) -> None:
    rows = open_run(session_factory, 3, **DROP)
    old = take(session_factory, rows.update_ids[2])
    with session_factory() as session:
        leases.release(session, old)
        session.commit()
    take(session_factory, rows.update_ids[2])
    for update_id in rows.update_ids[:2]:
        finish(session_factory, update_id)
    pass_deadline(session_factory, rows)
    assert hand_in(session_factory, old) is None
    assert updates(session_factory, rows)[2].late_at is None
    assert updates(session_factory, rows)[2].status is UpdateStatus.DROPPED
