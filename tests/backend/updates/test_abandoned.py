from datetime import timedelta

import pytest
from sqlalchemy import func, update
from sqlalchemy.orm import Session

from backend.contracts.enums import Execution, RunStatus, UpdateStatus
from backend.db.models import Client, ClientUpdate, Run
from backend.db.session import SessionFactory
from backend.settings import Settings
from backend.sweep import sweep_once
from tests.backend.rows import OpenRun, add_open_run

PATIENT = Settings(remote_wait_hours=2)


def waiting_for(session: Session, minutes: int) -> OpenRun:
    rows = add_open_run(session, num_clients=1, execution=Execution.REMOTE)
    session.execute(
        update(ClientUpdate)
        .where(ClientUpdate.id == rows.update_ids[0])
        .values(enqueued_at=func.now() - timedelta(minutes=minutes))
    )
    session.commit()
    return rows


@pytest.mark.parametrize("minutes", [0, 119])
def test_an_agent_may_take_its_time(
    session: Session, session_factory: SessionFactory, minutes: int
) -> None:
    rows = waiting_for(session, minutes)
    assert sweep_once(session_factory, PATIENT) == 0, "no worker trains for a remote client"
    session.expire_all()
    assert session.get_one(Run, rows.run_id).status is RunStatus.RUNNING


def test_a_run_does_not_wait_for_ever_for_an_agent(
    session: Session, session_factory: SessionFactory
) -> None:
    rows = waiting_for(session, 121)
    for _ in range(2):
        assert sweep_once(session_factory, PATIENT) == 0
    session.expire_all()
    run = session.get_one(Run, rows.run_id)
    name = session.get_one(Client, rows.client_ids[0]).name
    assert run.status is RunStatus.FAILED
    assert run.error is not None
    assert run.error.startswith(f"The agent of {name} asked for no work in 2 hours.")
    assert session.get_one(ClientUpdate, rows.update_ids[0]).status is UpdateStatus.FAILED
