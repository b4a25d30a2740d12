"""Conflict rules inside H2Tune's `delta` aggregation."""

import pytest
import torch
from pydantic import ValidationError

from backend.contracts.params.h2tune import H2TuneParams
from tests.worker.federated.strategies.rounds import federation_of, run_round, training
from tests.worker.federated.tiny import make_client
from worker.federated.client_round import take
from worker.federated.cmga import ConflictRule
from worker.federated.simulation import SimulatedClient
from worker.federated.strategies.h2tune import H2Tune
from worker.federated.types import AggregationReport, ClientUpdate, ServerState, Tensors

RULES: list[ConflictRule] = ["cmga", "pairwise"]


def members() -> list[SimulatedClient]:
    return [
        make_client("a", rank=8, num_layers=3),
        make_client("b", rank=4, width=48, seed=1),
        make_client("c", "gemma", rank=2, seed=2),
    ]


def aggregated(
    rule: ConflictRule,
    state: ServerState,
    clients: list[SimulatedClient],
    updates: list[ClientUpdate],
) -> tuple[Tensors, AggregationReport]:
    strategy = H2Tune(H2TuneParams(conflict=rule))
    after, report = strategy.aggregate(state, federation_of(clients), iter(updates))
    return take("slots", after.tensors), report


def round_of(clients: list[SimulatedClient], steps: int) -> tuple[ServerState, list[ClientUpdate]]:
    strategy = H2Tune(H2TuneParams())
    state = strategy.init_state(federation_of(clients), 1)
    # One joint round gives B != 0, the second one gives changes.
    first = run_round(strategy, state, clients, 1, training())
    private = {update.client_id: update.private for update in first}
    state, _ = strategy.aggregate(state, federation_of(clients), iter(first))
    return state, run_round(strategy, state, clients, 2, training(local_steps=steps), private)


def times(update: ClientUpdate, factor: float) -> ClientUpdate:
    shared = {
        name: tensor * factor if name.startswith("values/") else tensor
        for name, tensor in update.shared.items()
    }
    return ClientUpdate(update.client_id, 2, update.num_examples, shared, {}, {})


def test_opposed_clients_of_one_model() -> None:
    """b sends -1/2 of what a sends: the mean is a / 4, all of b goes, and a / 2 remains."""
    clients = [make_client("a", rank=4), make_client("b", rank=4)]
    state, (update, _) = round_of(clients, 4)
    opposed = times(update, -0.5)
    updates = [update, ClientUpdate("b", 2, opposed.num_examples, opposed.shared, {}, {})]
    old, plain = take("slots", state.tensors), aggregated("none", state, clients, updates)[0]
    resolved, report = aggregated("cmga", state, clients, updates)
    for role in old:
        torch.testing.assert_close(
            resolved[role] - old[role], 2 * (plain[role] - old[role]), rtol=1e-4, atol=1e-6
        )
    assert report.values["conflict_rate"] == pytest.approx(0.5)
    # Pairwise both lose what is opposed, which is all that they have.
    cancelled, report = aggregated("pairwise", state, clients, updates)
    for role in old:
        torch.testing.assert_close(cancelled[role], old[role], rtol=0, atol=1e-6)
    assert report.values["conflict_rate"] == 1.0


@pytest.mark.parametrize("rule", RULES)
def test_a_single_client_is_left_alone(rule: ConflictRule) -> None:
    clients = [make_client("a", rank=4)]
    state, updates = round_of(clients, 4)
    plain, resolved = (aggregated(r, state, clients, updates)[0] for r in ("none", rule))
    for role, slots in plain.items():
        assert torch.equal(slots, resolved[role])


@pytest.mark.parametrize("rule", RULES)
def test_without_conflict_nothing_changes(rule: ConflictRule) -> None:
    """Two senders of one model who agree, and one of another depth and rank who does not move."""
    clients = [make_client("a", rank=4), make_client("b", rank=4)]
    state, (update, _) = round_of(clients, 4)
    agreeing = ClientUpdate("b", 2, 7, times(update, 3.0).shared, {}, {})
    updates = [update, agreeing]
    plain, report = aggregated("none", state, clients, updates)
    resolved, resolved_report = aggregated(rule, state, clients, updates)
    for role, slots in plain.items():
        torch.testing.assert_close(slots, resolved[role], rtol=0, atol=1e-7)
    assert "conflict_rate" not in report.values
    assert resolved_report.values["conflict_rate"] == 0.0


@pytest.mark.parametrize("rule", RULES)
def test_idle_rounds_and_order_change_nothing(rule: ConflictRule) -> None:
    clients = members()
    state, idle = round_of(clients, 0)
    slots, report = aggregated(rule, state, clients, idle)
    for role, old in take("slots", state.tensors).items():
        assert torch.equal(slots[role], old)
    assert "conflict_rate" not in report.values, "nobody moved, so nothing was compared"
    state, updates = round_of(clients, 4)
    one, two = (aggregated(rule, state, clients, order)[0] for order in (updates, updates[::-1]))
    for role in one:
        torch.testing.assert_close(one[role], two[role], rtol=0, atol=1e-6)


def test_only_changes_can_be_in_conflict() -> None:
    with pytest.raises(ValidationError, match="conflict is 'cmga' but aggregation is 'mean'"):
        H2TuneParams(conflict="cmga", aggregation="mean")
