"""When a round with secure aggregation goes on, without any cryptography."""

from datetime import timedelta
from uuid import UUID

import pytest
from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from backend.barrier import notice_deadline, settle_round
from backend.contracts.enums import Execution, RunStatus, SecureStep, UpdateStatus
from backend.contracts.jobs import CloseRound
from backend.contracts.round_policy import RoundPolicy
from backend.db.models import ClientUpdate, Round, Run, SecureParty, SecureSession
from backend.db.session import SessionFactory
from backend.lifecycle import lock_run
from backend.resumption import resume_run
from backend.secure_steps import awaited, find_secure
from backend.settings import Settings
from backend.sweep import sweep_once
from tests.backend.rows import OpenRun, add_open_run

LATE = func.now() - timedelta(seconds=1)
TOLD = {"own_seeds": {}, "mask_keys": {}}


@pytest.fixture
def rows(session: Session) -> OpenRun:
    """Four remote clients, three of which are enough."""
    rows = add_open_run(session, 4, Execution.REMOTE)
    policy = RoundPolicy(min_clients=3, deadline_seconds=3600, stragglers="drop")
    session.execute(update(Run).values(round_policy=policy.model_dump(mode="json")))
    session.execute(update(Round).values(quorum=3))
    session.add(SecureSession(round_id=rows.round_id, threshold=3))
    session.commit()
    return rows


def announce(session: Session, *update_ids: UUID, **values: object) -> None:
    for update_id in update_ids:
        session.add(SecureParty(client_update_id=update_id, cipher_key="-", mask_key="-", **values))
    session.flush()


def step_of(session: Session, rows: OpenRun) -> SecureStep:
    secure = find_secure(session, rows.round_id)
    assert secure is not None
    return secure.step


def pass_deadline(session: Session, rows: OpenRun) -> list[object]:
    session.execute(update(Round).values(deadline_at=LATE, is_overdue=False))
    lock_run(session, rows.run_id)
    return list(notice_deadline(session, rows.round_id))


def hand_in(session: Session, *update_ids: UUID) -> None:
    session.execute(
        update(ClientUpdate)
        .where(ClientUpdate.id.in_(update_ids))
        .values(status=UpdateStatus.ACCEPTED)
    )


def statuses(session: Session, rows: OpenRun) -> list[UpdateStatus]:
    found = {
        row.id: row.status for row in session.execute(select(ClientUpdate.id, ClientUpdate.status))
    }
    return [found[update_id] for update_id in rows.update_ids]


def test_every_step_waits_for_all_and_at_its_own_deadline_for_enough(
    session: Session, rows: OpenRun
) -> None:
    *most, last = rows.update_ids
    announce(session, *most)
    assert settle_round(session, rows.run_id) == []
    assert step_of(session, rows) is SecureStep.KEYS
    secure = find_secure(session, rows.round_id)
    assert secure is not None
    assert [client_id for client_id, _ in awaited(session, secure)] == [rows.client_ids[3]]
    pass_deadline(session, rows)
    assert step_of(session, rows) is SecureStep.SHARES
    assert statuses(session, rows)[3] is UpdateStatus.DROPPED
    round_ = session.get_one(Round, rows.round_id, populate_existing=True)
    left = session.scalar(select(Round.deadline_at - func.now()))
    assert left is not None
    assert not round_.is_overdue
    assert timedelta(seconds=3500) < left <= timedelta(seconds=3600)
    session.execute(update(SecureParty).values(shares={}))
    settle_round(session, rows.run_id)
    assert step_of(session, rows) is SecureStep.INPUTS
    hand_in(session, *most)
    assert settle_round(session, rows.run_id) == []
    assert step_of(session, rows) is SecureStep.UNMASKING
    session.execute(
        update(SecureParty).where(SecureParty.client_update_id.in_(most[:2])).values(revealed=TOLD)
    )
    assert settle_round(session, rows.run_id) == []
    session.execute(update(SecureParty).values(revealed=TOLD))
    assert settle_round(session, rows.run_id) == [CloseRound(round_id=rows.round_id)]
    assert last not in most


def test_too_few_keys_wait_on_after_the_deadline(session: Session, rows: OpenRun) -> None:
    announce(session, *rows.update_ids[:2])
    pass_deadline(session, rows)
    assert step_of(session, rows) is SecureStep.KEYS
    assert statuses(session, rows) == [UpdateStatus.PENDING] * 4
    announce(session, rows.update_ids[2])
    settle_round(session, rows.run_id)
    assert step_of(session, rows) is SecureStep.SHARES
    assert statuses(session, rows)[3] is UpdateStatus.DROPPED


@pytest.fixture
def unmasking(session: Session, rows: OpenRun) -> OpenRun:
    """All four updates are in the sum, and two clients have told their shares."""
    announce(session, *rows.update_ids[:2], shares={}, revealed=TOLD)
    announce(session, *rows.update_ids[2:], shares={})
    session.execute(update(ClientUpdate).values(status=UpdateStatus.ACCEPTED, aggregated_in=1))
    session.execute(update(SecureSession).values(step=SecureStep.UNMASKING))
    session.commit()
    return rows


@pytest.mark.parametrize("by", ["deadline", "sweep"])
def test_a_sum_that_too_few_open_stays_closed_and_waits_for_a_person(
    session: Session, unmasking: OpenRun, session_factory: SessionFactory, by: str
) -> None:
    if by == "deadline":
        assert pass_deadline(session, unmasking) == []
        session.commit()
    else:
        settings = Settings(remote_wait_hours=1)
        sweep_once(session_factory, settings)
        assert session.get_one(Run, unmasking.run_id).status is RunStatus.RUNNING
        before = func.now() - timedelta(hours=1, seconds=1)
        session.execute(update(SecureSession).values(step_since=before))
        session.commit()
        sweep_once(session_factory, settings)
    run = session.get_one(Run, unmasking.run_id, populate_existing=True)
    assert run.status is RunStatus.FAILED
    assert run.error is not None
    assert "stays closed, and with it every update: 2 clients told" in run.error
    assert "3 are needed" in run.error
    assert resume_run(session, unmasking.run_id, "ada") == []
    assert statuses(session, unmasking) == [UpdateStatus.ACCEPTED] * 4
    session.execute(
        update(SecureParty)
        .where(SecureParty.client_update_id == unmasking.update_ids[2])
        .values(revealed=TOLD)
    )
    assert settle_round(session, unmasking.run_id) == [CloseRound(round_id=unmasking.round_id)]
