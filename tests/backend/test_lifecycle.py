"""Status changes: the tables are closed, compare-and-set holds, ends are ends."""

import pytest
from sqlalchemy import select

from backend.contracts.enums import (
    AttemptOutcome,
    EventKind,
    RunStatus,
    UpdateStatus,
)
from backend.db.models import Attempt, ClientUpdate, Event, Round, Run
from backend.db.session import SessionFactory
from backend.leases import claim
from backend.lifecycle import (
    OPEN_ROUNDS,
    OPEN_UPDATES,
    ROUND_CHANGES,
    RUN_CHANGES,
    UPDATE_CHANGES,
    cancel_run,
    change_run,
    fail_run,
)
from tests.backend.rows import add_clients, add_open_run, add_run

RUN_PAIRS = [(source, to) for source in RunStatus for to in RunStatus]


@pytest.mark.parametrize(("source", "to"), RUN_PAIRS)
def test_a_run_moves_exactly_along_the_table(
    session_factory: SessionFactory, source: RunStatus, to: RunStatus
) -> None:
    with session_factory() as session:
        run = add_run(session, add_clients(session, 1), source)
        session.commit()
        moved = change_run(session, run.id, to)
        session.commit()
        session.refresh(run)
    assert moved == (to in RUN_CHANGES.get(source, set()))
    assert run.status == (to if moved else source)


@pytest.mark.parametrize("changes", [RUN_CHANGES, ROUND_CHANGES, UPDATE_CHANGES])
def test_every_waiting_state_can_reach_an_end(changes: dict[str, set[str]]) -> None:
    # Some ends can be left again, by a person who resumes a run; none of these waits for anything.
    waiting = {*OPEN_UPDATES, *OPEN_ROUNDS, *(s for s in RunStatus if not s.is_terminal)}
    ends = {target for targets in changes.values() for target in targets} - waiting
    for start in changes:
        reached, frontier = set(), {start}
        while frontier:
            state = frontier.pop()
            reached.add(state)
            frontier |= changes.get(state, set()) - reached
        assert reached & ends, f"{start} never ends"


@pytest.mark.parametrize("end", [RunStatus.CANCELLED, RunStatus.FAILED])
def test_ending_a_run_ends_all_its_parts(session_factory: SessionFactory, end: RunStatus) -> None:
    with session_factory() as session:
        rows = add_open_run(session, num_clients=2)
        assert claim(session, rows.update_ids[0], "worker-1", 30) is not None
        session.commit()
        ended = (
            cancel_run(session, rows.run_id, "ada")
            if end is RunStatus.CANCELLED
            else fail_run(session, rows.run_id, "the disk is full")
        )
        session.commit()
        assert ended
        run = session.get_one(Run, rows.run_id, populate_existing=True)
        assert run.status is end
        assert run.ended_at is not None
        round_ = session.get_one(Round, rows.round_id, populate_existing=True)
        assert round_.status.value == end.value
        assert round_.status not in OPEN_ROUNDS
        updates = session.scalars(
            select(ClientUpdate).execution_options(populate_existing=True)
        ).all()
        assert {update.status for update in updates} == {UpdateStatus.CANCELLED}
        attempt = session.scalars(select(Attempt).execution_options(populate_existing=True)).one()
        assert attempt.outcome is AttemptOutcome.CANCELLED
        kinds = session.scalars(select(Event.kind).order_by(Event.id)).all()
        assert kinds[-1].value == f"run_{end.value}"
        assert kinds[0] is EventKind.ATTEMPT_STARTED


def test_an_ended_run_stays_ended(session_factory: SessionFactory) -> None:
    with session_factory() as session:
        rows = add_open_run(session)
        assert cancel_run(session, rows.run_id, "ada")
        session.commit()
        assert not cancel_run(session, rows.run_id, "ada")
        assert not fail_run(session, rows.run_id, "too late")
        session.commit()
        run = session.get_one(Run, rows.run_id, populate_existing=True)
        assert run.status is RunStatus.CANCELLED
        assert run.error is None
