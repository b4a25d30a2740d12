"""Running a strategy inside groups equals running each group on its own."""

from collections.abc import Iterator
from typing import Literal

import pytest
import torch
from pydantic import TypeAdapter

from backend.contracts.enums import StrategyName
from backend.contracts.params.base import GroupableParams
from backend.contracts.params.h2tune import H2TuneParams
from backend.contracts.strategies import Params, describe_strategies
from tests.worker.federated.strategies.rounds import at_work, federation_of, run_round, training
from tests.worker.federated.tiny import make_client
from worker.federated.client_round import take
from worker.federated.errors import InvalidUpdateError
from worker.federated.simulation import SimulatedClient, SimulationResult, simulate
from worker.federated.strategies.grouped import Grouped
from worker.federated.strategies.h2tune import H2Tune
from worker.federated.types import AggregationReport, ClientUpdate, ServerState, Tensors
from worker.federated.wire import decode_state, decode_update, encode_state, encode_update


class GroupableH2Tune(GroupableParams):
    """The strategy with the richest state, as if it needed groups."""

    name: Literal[StrategyName.H2TUNE] = StrategyName.H2TUNE


INNER = H2Tune(H2TuneParams())
QUICK = training(local_steps=2, evaluate_every=100)
GROUPED = Grouped(GroupableH2Tune(group_by="architecture"), INNER)  # type: ignore[arg-type]


def mixed() -> list[SimulatedClient]:
    """Two shallow clients, two deep ones between them, and one of another width."""
    return [
        make_client("a", rank=8),
        make_client("b", rank=8, num_layers=3, seed=1),
        make_client("c", rank=2, seed=2),
        make_client("d", rank=4, num_layers=3, seed=3),
        make_client("e", rank=4, width=48, seed=4),
    ]


def played(strategy, clients, num_rounds=2) -> tuple[ServerState, list, dict[str, Tensors]]:
    """State, reports and private tensors after some rounds."""
    federation, private = federation_of(clients), {}
    state, reports = strategy.init_state(federation, 3), []
    for number in range(1, num_rounds + 1):
        updates = run_round(strategy, state, clients, number, QUICK, private)
        private = {update.client_id: update.private for update in updates}
        arrived = (decode_update(encode_update(update)) for update in updates)
        state, report = strategy.aggregate(state, federation, arrived)
        state = decode_state(encode_state(state))
        reports.append(report)
    return state, reports, private


def test_groups_equal_separate_runs_bit_for_bit() -> None:
    clients = mixed()
    together, reports, private = played(GROUPED, clients)
    parts = [[clients[0], clients[2]], [clients[1], clients[3]], [clients[4]]]
    for number, part in enumerate(parts):
        alone, own_reports, own_private = played(INNER, part)
        prefix = f"group/{number}/"
        found = {n.removeprefix(prefix): t for n, t in together.tensors.items() if prefix in n}
        assert found.keys() == alone.tensors.keys()
        assert all(torch.equal(found[name], tensor) for name, tensor in alone.tensors.items())
        assert together.meta["groups"][str(number)] == alone.meta
        for client_id, kept in own_private.items():
            assert kept.keys() == private[client_id].keys()
            assert all(torch.equal(private[client_id][name], t) for name, t in kept.items())
        for report, own in zip(reports, own_reports, strict=True):
            assert {
                name: report.values[f"group_{number}/{name}"] for name in own.values
            } == own.values


GROUPABLE = [i.name for i in describe_strategies() if "group_by" in i.params_schema["properties"]]


@pytest.mark.parametrize("name", GROUPABLE)
def test_every_groupable_strategy_serves_families_side_by_side(name: StrategyName) -> None:
    """And each family's run is the one that it would have had alone."""
    llamas = [make_client("a", rank=4), make_client("c", rank=4, seed=1)]
    others = [make_client("b", "gpt2", rank=4, width=48, seed=2)]

    def run(clients: list[SimulatedClient], group_by: str) -> SimulationResult:
        params = TypeAdapter(Params).validate_python({"name": name, "group_by": group_by})
        return simulate(params, clients, num_rounds=2, training=QUICK, global_rank=8, seed=3)

    together = run([*others, *llamas], "architecture")
    for number, part in enumerate([llamas, others]):
        alone = run(part, "none")
        found = take(f"group/{number}", together.state.tensors)
        assert found.keys() == alone.state.tensors.keys()
        assert all(torch.equal(found[n], t) for n, t in alone.state.tensors.items())
        for client_id, kept in alone.private.items():
            assert all(torch.equal(together.private[client_id][n], t) for n, t in kept.items())
    assert together.rounds[-1].report.values["num_groups"] == 2
    assert together.rounds[-1].report.values["num_clients_alone"] == 1


def test_the_report_says_how_many_groups_and_who_was_alone() -> None:
    _, reports, _ = played(GROUPED, mixed(), num_rounds=1)
    assert reports[0].num_clients == 5
    assert reports[0].values["num_groups"] == 3
    assert reports[0].values["num_clients_alone"] == 1


def test_the_order_of_members_and_updates_is_irrelevant() -> None:
    clients = mixed()
    federation = federation_of(clients)
    state = GROUPED.init_state(federation, 3)
    updates = run_round(GROUPED, state, clients, 1, QUICK)
    forward, _ = GROUPED.aggregate(state, federation, updates)
    back, _ = GROUPED.aggregate(state, federation, updates[::-1])
    assert all(torch.allclose(back.tensors[n], t, atol=1e-7) for n, t in forward.tensors.items())


class OneAtATime:
    """A strategy that notes how many updates exist while it aggregates; all else as H2Tune."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def __getattr__(self, name: str):
        return getattr(INNER, name)

    def aggregate(self, state, federation, updates):
        assert isinstance(updates, Iterator)
        self.seen += [update.client_id for update in updates]
        return state, AggregationReport(len(federation.clients))


def test_each_group_reads_its_own_updates_only() -> None:
    clients, inner = mixed(), OneAtATime()
    grouped = Grouped(GROUPED.params, inner)  # type: ignore[arg-type]
    federation = federation_of(clients)
    state = grouped.init_state(federation, 3)
    updates = run_round(grouped, state, clients, 1, QUICK)
    same, report = grouped.aggregate(state, federation, iter(updates))
    assert inner.seen == ["a", "c", "b", "d", "e"]
    assert report.num_clients == 5
    assert same.meta == state.meta
    assert all(torch.equal(same.tensors[name], t) for name, t in state.tensors.items())


def test_a_group_that_sent_nothing_keeps_its_state() -> None:
    clients = mixed()
    federation = federation_of(clients)
    state = GROUPED.init_state(federation, 3)
    updates = run_round(GROUPED, state, clients[:1], 1, QUICK)
    after, report = GROUPED.aggregate(state, federation, updates)
    assert report.num_clients == 1
    changed = {n for n, t in state.tensors.items() if not torch.equal(after.tensors[n], t)}
    assert {name.split("/")[1] for name in changed} == {"0"}


def test_a_plan_is_that_of_the_client_s_own_group() -> None:
    clients = mixed()
    federation = federation_of(clients)
    plans = GROUPED.configure_round(GROUPED.init_state(federation, 3), federation, 1, deliver=False)
    assert plans.keys() == {"a", "b", "c", "d", "e"}
    assert {client_id: plan.num_slots for client_id, plan in plans.items()} == {
        "a": 2, "b": 3, "c": 2, "d": 3, "e": 2,
    }  # fmt: skip


def test_updates_from_outside_and_empty_rounds_are_refused() -> None:
    clients = mixed()
    federation = federation_of(clients)
    state = GROUPED.init_state(federation, 3)
    stranger = ClientUpdate("x", 1, 1, {}, {}, {})
    with pytest.raises(InvalidUpdateError, match="'x' comes from outside"):
        GROUPED.aggregate(state, federation, [stranger])
    with pytest.raises(InvalidUpdateError, match="at least one"):
        GROUPED.aggregate(state, federation, [])


def test_training_and_delivery_are_the_wrapped_strategy_s(tmp_path) -> None:
    client = make_client("a", rank=8)
    federation = federation_of([client])
    state = GROUPED.init_state(federation, 3)
    plan = GROUPED.configure_round(state, federation, 2, deliver=True)["a"]
    delivered = GROUPED.deliver_client(plan, at_work(client, training()), tmp_path)
    assert (tmp_path / "adapter_config.json").exists()
    assert delivered
