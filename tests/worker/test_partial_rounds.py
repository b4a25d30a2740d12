"""Rounds that close without everybody, with real training: who takes part, and what is used."""

from uuid import UUID

import pytest
from sqlalchemy import select

from backend.contracts.enums import EventKind, RunStatus, UpdateStatus
from backend.contracts.jobs import CloseRound, Job, OpenRound, RunClientUpdate
from backend.contracts.params.base import StrategyParams
from backend.contracts.params.h2tune import H2TuneParams
from backend.contracts.params.lora import FloraParams
from backend.contracts.round_policy import RoundPolicy
from backend.db.models import Client, ClientUpdate, Event, Round, Run
from tests.backend.rows import add_clients
from tests.worker.test_rounds import do, drain, platform, queue_run, sent, state_of
from worker import artifacts
from worker.federated.errors import NonFiniteError
from worker.federated.participation import draw_clients
from worker.federated.strategies.h2tune import H2Tune
from worker.federated.types import ClientPlan, LocalClient
from worker.federated.types import ClientUpdate as Sent
from worker.platform import Platform

__all__ = ["platform", "sent"]  # fixtures


def begin(
    platform: Platform,
    params: StrategyParams,
    policy: RoundPolicy,
    num_clients: int = 3,
    num_rounds: int = 2,
) -> UUID:
    with platform.session_factory() as session:
        clients = add_clients(session, num_clients)
        session.commit()
    run_id = queue_run(platform, params, num_rounds, clients)
    with platform.session_factory() as session:
        session.get_one(Run, run_id).round_policy = policy.model_dump(mode="json")
        session.commit()
    return run_id


def rows(platform: Platform, run_id: UUID, round_number: int) -> dict[str, ClientUpdate]:
    """Updates of a round by client id, in order of that."""
    with platform.session_factory() as session:
        found = session.scalars(
            select(ClientUpdate)
            .join(Round, ClientUpdate.round_id == Round.id)
            .where(Round.run_id == run_id, Round.round_number == round_number)
            .order_by(ClientUpdate.client_id)
        ).all()
    return {str(row.client_id): row for row in found}


@pytest.mark.parametrize("params", [H2TuneParams(), FloraParams()], ids=lambda p: p.name)
def test_each_round_draws_its_clients_and_all_of_them_are_delivered_to(
    platform: Platform, sent: list[Job], params: StrategyParams
) -> None:
    run_id = begin(platform, params, RoundPolicy(clients_per_round=1), num_rounds=3)
    drain(platform, [OpenRound(run_id=run_id)])
    drain(platform, sent)
    run = state_of(platform, run_id)
    assert (run.status, run.error) == (RunStatus.COMPLETED, None)
    delivered = rows(platform, run_id, 4)
    assert len(delivered) == 3
    assert all(row.adapter_sha256 for row in delivered.values())
    took_part = [list(rows(platform, run_id, number)) for number in (1, 2, 3)]
    assert took_part == [draw_clients(delivered, 1, run.seed, number) for number in (1, 2, 3)]
    assert [row.aggregated_in for row in rows(platform, run_id, 2).values()] == [2]


def test_a_draw_is_fair_and_its_own_in_every_round() -> None:
    members = [f"client-{number}" for number in range(10)]
    draws = [draw_clients(members, 3, 7, number) for number in range(1, 2001)]
    assert draws == [draw_clients(reversed(members), 3, 7, number) for number in range(1, 2001)]
    counts = [sum(member in draw for draw in draws) for member in members]
    # Binomial(2000, 0.3): standard deviation 20.5; six of them are 123.
    assert all(abs(count - 600) < 123 for count in counts)
    assert draws[0] != draw_clients(members, 3, 8, 1) or draws[1] != draw_clients(members, 3, 8, 2)
    assert draw_clients(members, 99, 7, 1) == members


def test_a_client_that_cannot_train_is_left_out_and_the_others_are_delivered(
    platform: Platform, sent: list[Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = begin(platform, H2TuneParams(), RoundPolicy(min_clients=2))
    do(platform, OpenRound(run_id=run_id))
    broken = next(iter(rows(platform, run_id, 1)))
    train_client = H2Tune.train_client

    def diverge(self: H2Tune, plan: ClientPlan, client: LocalClient) -> Sent:
        if plan.client_id == broken and plan.round_number == 1:
            raise NonFiniteError("The loss is NaN: lower the learning rate.")
        return train_client(self, plan, client)

    monkeypatch.setattr(H2Tune, "train_client", diverge)
    drain(platform, sent)
    run = state_of(platform, run_id)
    assert (run.status, run.error) == (RunStatus.COMPLETED, None)
    first = rows(platform, run_id, 1)
    assert {row.status for name, row in first.items() if name == broken} == {UpdateStatus.FAILED}
    assert [row.aggregated_in for row in first.values()] == [None, 1, 1]
    assert {row.status for row in rows(platform, run_id, 2).values()} == {UpdateStatus.ACCEPTED}
    assert all(row.adapter_sha256 for row in rows(platform, run_id, 3).values())


def test_an_update_that_cannot_be_aggregated_costs_its_client_and_not_the_run(
    platform: Platform, sent: list[Job]
) -> None:
    run_id = begin(platform, H2TuneParams(), RoundPolicy(min_clients=2), num_rounds=1)
    do(platform, OpenRound(run_id=run_id))
    for job in [job for job in sent if isinstance(job, RunClientUpdate)]:
        do(platform, job)
    bad, *good = rows(platform, run_id, 1).values()
    with platform.session_factory() as session:
        session.get_one(ClientUpdate, bad.id).shared_sha256 = good[0].shared_sha256
        session.commit()
    drain(platform, [job for job in sent if isinstance(job, CloseRound)] * 2)
    with platform.session_factory() as session:
        refused = session.get_one(ClientUpdate, bad.id)
        assert (refused.status, refused.aggregated_in) == (UpdateStatus.REFUSED, None)
        name = session.get_one(Client, bad.client_id).name
        kinds = [EventKind.UPDATE_REFUSED, EventKind.CLIENT_LEFT_OUT]
        told = session.execute(
            select(Event.kind, Event.message).where(Event.kind.in_(kinds)).order_by(Event.id)
        ).all()
    assert [kind for kind, _ in told] == kinds
    assert told[0].message.startswith(f"The update of {name} in round 1 was refused: ")
    drain(platform, [job for job in sent if not isinstance(job, RunClientUpdate)])
    assert state_of(platform, run_id).status is RunStatus.RUNNING
    report = only_report(platform, run_id)
    assert report["seconds_aggregate"] > 0
    assert artifacts.load_state(platform, str(state_of(platform, run_id).state_sha256)).tensors


def test_a_buffer_of_everybody_is_the_synchronous_run_bit_for_bit(
    platform: Platform, sent: list[Job]
) -> None:
    synchronous = begin(platform, H2TuneParams(), RoundPolicy(), num_clients=2)
    with platform.session_factory() as session:
        clients = list(session.get_one(Run, synchronous).federation.clients)
    buffered = queue_run(platform, H2TuneParams(), 2, clients)
    with platform.session_factory() as session:
        policy = RoundPolicy(buffer_size=2, staleness_exponent=0)
        session.get_one(Run, buffered).round_policy = policy.model_dump(mode="json")
        session.commit()
    for seed, run_id in enumerate((synchronous, buffered)):
        drain(platform, [OpenRound(run_id=run_id)])
        drain(platform, sent, seed=seed)
        assert state_of(platform, run_id).status is RunStatus.COMPLETED
    states = [state_of(platform, run_id).state_sha256 for run_id in (synchronous, buffered)]
    assert states[0] == states[1]


def test_a_small_buffer_closes_rounds_early_and_uses_every_update_or_lists_it(
    platform: Platform, sent: list[Job]
) -> None:
    run_id = begin(platform, H2TuneParams(), RoundPolicy(buffer_size=1), 2, num_rounds=3)
    drain(platform, [OpenRound(run_id=run_id)])
    while sent:  # in order of arrival, so the second client is always behind
        do(platform, sent.pop(0))
    run = state_of(platform, run_id)
    assert (run.status, run.error) == (RunStatus.COMPLETED, None)
    used = {
        (row.aggregated_in, number)
        for number in (1, 2, 3)
        for row in rows(platform, run_id, number).values()
        if row.aggregated_in is not None
    }
    assert sorted(number for number, _ in used) == [1, 2, 3], "each round takes one update"
    assert any(used_in > trained_in for used_in, trained_in in used)
    unused = [
        row
        for number in (1, 2, 3)
        for row in rows(platform, run_id, number).values()
        if row.aggregated_in is None
    ]
    assert all(row.status is UpdateStatus.DROPPED or row.late_at for row in unused)
    assert all(row.adapter_sha256 for row in rows(platform, run_id, 4).values())


def only_report(platform: Platform, run_id: UUID) -> dict[str, float]:
    with platform.session_factory() as session:
        query = select(Round.report).where(Round.run_id == run_id, Round.round_number == 1)
        return dict(session.scalars(query).one())
