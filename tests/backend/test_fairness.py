"""Turns of federations at the workers, in a real database."""

from uuid import UUID

import pytest
from sqlalchemy.orm import Session

from backend import leases
from backend.contracts.enums import Execution, RunStatus
from backend.db.models import Comparison, Run
from backend.db.session import SessionFactory
from backend.fairness import RunLoad, fair_update, queue_positions, turn_order
from tests.backend.rows import OpenRun, add_open_run
from tests.factories import Caller

RESULT = leases.Result(metrics={})


def owner(*runs: OpenRun) -> dict[UUID, str]:
    """Which run an update belongs to, by its place in the alphabet."""
    return {update: "abcdef"[place] for place, run in enumerate(runs) for update in run.update_ids}


def serve(session_factory: SessionFactory, asked: UUID, *, finish: bool) -> UUID | None:
    """What a worker does with one job."""
    with session_factory() as session:
        claim = leases.claim(session, fair_update(session, asked), "worker", 30)
        session.commit()
    if claim is None:
        return None
    if finish:
        with session_factory() as session:
            leases.accept(session, claim, RESULT)
            session.commit()
    return claim.client_update_id


def test_a_federation_with_many_clients_does_not_hold_up_another(
    session: Session, session_factory: SessionFactory
) -> None:
    many, few = add_open_run(session, 6), add_open_run(session, 2)
    of = owner(many, few)
    jobs = [*many.update_ids, *few.update_ids]  # as they lie in the queue
    done = [serve(session_factory, job, finish=True) for job in jobs]
    order = "".join(of[update] for update in done if update is not None)
    assert sorted(order) == sorted("aaaaaabb")  # every job did something, nothing twice
    assert order.index("b") <= 1
    assert order.rindex("b") <= 3  # alternately, while both have something
    assert len(set(done)) == 8


def test_workers_at_the_same_time_are_shared_too(
    session: Session, session_factory: SessionFactory
) -> None:
    many, few = add_open_run(session, 6), add_open_run(session, 2)
    of = owner(many, few)
    begun = [serve(session_factory, job, finish=False) for job in many.update_ids[:4]]
    assert sorted(of[update] for update in begun if update is not None) == ["a", "a", "b", "b"]


def test_a_job_does_its_own_update_where_its_run_has_the_turn(
    session: Session, session_factory: SessionFactory
) -> None:
    rows = add_open_run(session, 3)
    assert serve(session_factory, rows.update_ids[2], finish=True) == rows.update_ids[2]
    others = {serve(session_factory, rows.update_ids[2], finish=True) for _ in range(2)}
    assert others == set(rows.update_ids[:2])
    assert serve(session_factory, rows.update_ids[2], finish=True) is None


def test_an_update_that_another_transaction_claims_is_left_to_it(
    session: Session, session_factory: SessionFactory
) -> None:
    rows = add_open_run(session, 2)
    with session_factory() as first, session_factory() as second:
        assert fair_update(first, rows.update_ids[0]) == rows.update_ids[0]
        assert fair_update(second, rows.update_ids[0]) == rows.update_ids[1]


def load(number: int, federation: int, waiting: int, training: int = 0) -> RunLoad:
    return RunLoad(UUID(int=number), UUID(int=federation), waiting, training, None)


@pytest.mark.parametrize(
    ("loads", "order"),
    [
        ([load(1, 1, 5), load(2, 1, 5), load(3, 2, 1)], [1, 3, 2]),
        ([load(1, 1, 5, 1), load(2, 2, 5)], [2, 1]),  # nobody trains for the second one
        ([load(1, 1, 0, 2), load(2, 1, 5), load(3, 2, 5, 1)], [3, 2]),  # a federation counts whole
        ([], []),
    ],
)
def test_the_order_of_turns(loads: list[RunLoad], order: list[int]) -> None:
    assert [run_id.int for run_id in turn_order(loads)] == order


def test_a_run_that_waits_shows_its_place(
    session: Session, session_factory: SessionFactory, admin: Caller
) -> None:
    first, second, third = (add_open_run(session, 2) for _ in range(3))
    remote = add_open_run(session, 1, Execution.REMOTE)  # its own agent trains: no queue
    assert queue_positions(session) == {
        first.run_id: 1,
        second.run_id: 2,
        third.run_id: 3,
    }
    served = serve(session_factory, first.update_ids[0], finish=False)
    assert served == first.update_ids[0]
    session.expire_all()
    places = {
        name: admin.get(f"/runs/{rows.run_id}").json()["queue_position"]
        for name, rows in {"1": first, "2": second, "3": third, "remote": remote}.items()
    }
    assert places == {"1": None, "2": 1, "3": 2, "remote": None}
    live = admin.get(f"/runs/{third.run_id}/live").json()
    assert live["run"]["queue_position"] == 2
    federation_id = session.get_one(Run, third.run_id).federation_id
    (listed,) = admin.get(f"/federations/{federation_id}/runs").json()["items"]
    assert listed["queue_position"] == 2


def test_a_run_of_a_comparison_shows_its_place_among_the_others(
    session: Session, admin: Caller
) -> None:
    rows = add_open_run(session, 1)
    run = session.get_one(Run, rows.run_id)
    comparison = Comparison(
        federation_id=run.federation_id, name="c", seeds=[0, 1], training=run.training,
        arms=[{"name": "x", "strategy": run.strategy}], num_rounds=1, created_by=run.created_by,
    )  # fmt: skip
    session.add(comparison)
    session.flush()
    waiting = [
        Run(
            federation_id=run.federation_id, comparison_id=comparison.id, arm="x", seed=seed,
            strategy=run.strategy, training=run.training, num_rounds=1, status=RunStatus.QUEUED,
            created_by=run.created_by,
        )
        for seed in (1, 0)
    ]  # fmt: skip
    session.add_all(waiting)
    session.commit()
    shown = [admin.get(f"/runs/{one.id}").json()["queue_position"] for one in waiting]
    assert shown == [2, 1]
    listed = admin.get(f"/comparisons/{comparison.id}/runs").json()["items"]
    assert {one["seed"]: one["queue_position"] for one in listed} == {0: 1, 1: 2}
