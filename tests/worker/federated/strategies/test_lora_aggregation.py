"""What servers make of LoRA factors, against dense sums written down in NumPy."""

import itertools
from collections.abc import Mapping

import numpy as np
import pytest
import torch

from backend.contracts.base_models import Architecture
from backend.contracts.enums import TaskKind
from backend.contracts.params.lora import (
    FedExLoraParams,
    FedItParams,
    FedPLoraParams,
    FedSaLoraParams,
    FfaLoraParams,
    FloraParams,
)
from backend.contracts.strategies import Params
from worker.federated.errors import InvalidUpdateError
from worker.federated.strategies.base_change import HOLDERS
from worker.federated.strategies.fed_plora import chosen_pairs
from worker.federated.strategies.lora_exchange import start_factors
from worker.federated.strategies.registry import build_strategy
from worker.federated.types import (
    AggregationReport,
    ClientSpec,
    ClientUpdate,
    FederationSpec,
    ModuleShape,
    ServerState,
    Tensors,
)
from worker.federated.wire import decode_state, encode_state, payload_bytes

SHAPES = {"q": (12, 10), "down": (20, 14)}  # role -> in, out
NUM_LAYERS = 3
EXAMPLES = {"a": 10, "b": 30, "c": 60}
WEIGHTS = {"a": 0.1, "b": 0.3, "c": 0.6}
SAME = {"a": 4, "b": 4, "c": 4}
DIFFERENT = {"a": 4, "b": 1, "c": 3}
ALL = [
    (FedItParams(), SAME, "AB"),
    (FfaLoraParams(), SAME, "B"),
    (FedSaLoraParams(), SAME, "A"),
    (FedExLoraParams(), SAME, "AB"),
    (FloraParams(), DIFFERENT, "AB"),
    (FedPLoraParams(), DIFFERENT, "AB"),
]
Dense = dict[str, np.ndarray]


def federation(ranks: Mapping[str, int], num_layers: int = NUM_LAYERS) -> FederationSpec:
    specs = (
        ClientSpec(
            client_id=client_id,
            name=client_id,
            architecture=Architecture(family="llama", num_layers=num_layers, hidden_size=12),
            modules={role: ModuleShape(*shape) for role, shape in SHAPES.items()},
            lora_rank=rank,
            lora_alpha=2.0 * rank,
            num_examples=EXAMPLES[client_id],
            task=TaskKind.CLASSIFICATION,
        )
        for client_id, rank in ranks.items()
    )
    return FederationSpec(8, tuple(specs))


def sent(
    members: FederationSpec, letters: str = "AB", *, seed: int = 0, round_number: int = 1
) -> list[ClientUpdate]:
    """Random factors of every client."""
    source = torch.Generator().manual_seed(seed)
    updates = []
    for client in members.clients:
        num_layers, rank = client.architecture.num_layers, client.lora_rank
        shapes = {}
        for role, (num_in, num_out) in SHAPES.items():
            shapes[f"A/{role}"] = (num_layers, rank, num_in)
            shapes[f"B/{role}"] = (num_layers, num_out, rank)
        shared = {
            name: torch.randn(shape, generator=source)
            for name, shape in shapes.items()
            if name[0] in letters
        }
        num = EXAMPLES[client.client_id]
        updates.append(ClientUpdate(client.client_id, round_number, num, shared, {}, {}))
    return updates


def array(tensor: torch.Tensor) -> np.ndarray:
    return tensor.double().numpy()


def products(tensors: Tensors, prefix: str = "") -> Dense:
    return {
        role: array(tensors[f"{prefix}B/{role}"]) @ array(tensors[f"{prefix}A/{role}"])
        for role in SHAPES
    }


def weighted_sum(updates: list[ClientUpdate]) -> Dense:
    """sum_i p_i B_i A_i, dense."""
    by_client = {update.client_id: products(update.shared) for update in updates}
    return {
        role: sum(WEIGHTS[client_id] * dense[role] for client_id, dense in by_client.items())
        for role in SHAPES
    }


def relative_error(found: Dense, expected: Dense) -> float:
    missed = sum(np.sum((found[role] - expected[role]) ** 2) for role in SHAPES)
    return float((missed / sum(np.sum(expected[role] ** 2) for role in SHAPES)) ** 0.5)


def close(
    params: Params, members: FederationSpec, updates: list[ClientUpdate], state: ServerState | None
) -> tuple[ServerState, AggregationReport]:
    strategy = build_strategy(params)
    state = strategy.init_state(members, 5) if state is None else state
    state, report = strategy.aggregate(state, members, iter(updates))
    return decode_state(encode_state(state)), report


def global_function(params: Params, state: ServerState, members: FederationSpec) -> Dense:
    """The update of W that all clients have in common after a round, dense; A alone for FedSA."""
    tensors = dict(state.tensors)
    match params:
        case FfaLoraParams():
            tensors |= start_factors(members.clients[0], 4, 5, "A")
            return products(tensors)
        case FedSaLoraParams():
            return {role: array(tensors[f"A/{role}"]) for role in SHAPES}
        case FloraParams():
            return products(tensors, "latest/")
        case FedExLoraParams():
            rest = products(tensors, "latest/")
            return {role: dense + rest[role] for role, dense in products(tensors).items()}
        case _:
            return products(tensors)


def test_fedit_averages_factors_and_reports_what_that_misses() -> None:
    members = federation(SAME)
    updates = sent(members)
    state, report = close(FedItParams(), members, updates, None)
    assert state.tensors.keys() == updates[0].shared.keys()
    for name, mean in state.tensors.items():
        expected = sum(WEIGHTS[u.client_id] * array(u.shared[name]) for u in updates)
        np.testing.assert_allclose(array(mean), expected, atol=1e-6)
    error = relative_error(products(state.tensors), weighted_sum(updates))
    assert error > 0.3
    assert report.values["cross_term_error"] == pytest.approx(error, rel=1e-5)
    assert report.num_clients == 3


def test_fedit_measures_its_error_on_layers_spread_over_the_depth() -> None:
    members = federation(SAME, num_layers=6)
    updates = sent(members)
    state, report = close(FedItParams(), members, updates, None)
    layers = [0, 2, 3, 5]
    found = {role: dense[layers] for role, dense in products(state.tensors).items()}
    exact = {role: dense[layers] for role, dense in weighted_sum(updates).items()}
    assert report.values["cross_term_error"] == pytest.approx(relative_error(found, exact))


def test_ffa_is_exact_with_an_a_that_never_travels() -> None:
    members = federation(SAME)
    frozen = start_factors(members.clients[0], 4, 5, "A")
    updates = sent(members, "B")
    complete = [
        ClientUpdate(u.client_id, 1, u.num_examples, {**u.shared, **frozen}, {}, {})
        for u in updates
    ]
    state, _ = close(FfaLoraParams(), members, updates, None)
    assert not any(name.startswith("A/") for name in state.tensors)
    found = global_function(FfaLoraParams(), state, members)
    assert relative_error(found, weighted_sum(complete)) <= 1e-5


def test_fedsa_averages_a_and_takes_no_b() -> None:
    members = federation(SAME)
    updates = sent(members, "A")
    state, _ = close(FedSaLoraParams(), members, updates, None)
    for role in SHAPES:
        expected = sum(WEIGHTS[u.client_id] * array(u.shared[f"A/{role}"]) for u in updates)
        np.testing.assert_allclose(array(state.tensors[f"A/{role}"]), expected, atol=1e-6)
    with pytest.raises(InvalidUpdateError, match="unknown are 'B/down'"):
        close(FedSaLoraParams(), members, sent(members), None)


def test_fedex_is_exact_with_a_residual_of_the_smallest_rank() -> None:
    members = federation(SAME)
    updates = sent(members)
    state, report = close(FedExLoraParams(), members, updates, None)
    found = global_function(FedExLoraParams(), state, members)
    assert relative_error(found, weighted_sum(updates)) <= 1e-5
    assert state.tensors["latest/A/down"].shape[1] == 2 * 4  # (N - 1) r
    average = products({name: t for name, t in state.tensors.items() if "/" not in name[2:]})
    error = relative_error(average, weighted_sum(updates))
    assert report.values["residual"] == pytest.approx(error, rel=1e-5)


def test_flora_is_exact_for_any_ranks_with_the_weights_on_a() -> None:
    members = federation(DIFFERENT)
    updates = sent(members)
    state, report = close(FloraParams(), members, updates, None)
    found = global_function(FloraParams(), state, members)
    assert relative_error(found, weighted_sum(updates)) <= 1e-5
    stacked = torch.cat([u.shared["B/down"] for u in updates], dim=2)
    assert torch.equal(state.tensors["latest/B/down"], stacked)
    expected = [WEIGHTS[u.client_id] * array(u.shared["A/down"]) for u in updates]
    np.testing.assert_allclose(
        array(state.tensors["latest/A/down"]), np.concatenate(expected, axis=1), atol=1e-6
    )
    assert report.values["stacked_rank"] == 4 + 1 + 3


def test_plora_averages_each_pair_over_those_who_trained_it() -> None:
    members = federation({"a": 4, "b": 1, "c": 2})
    updates = sent(members, round_number=2)
    strategy = build_strategy(FedPLoraParams())
    before = strategy.init_state(members, 5)
    state, report = close(FedPLoraParams(), members, updates[1:], before)
    picks = {
        u.client_id: chosen_pairs(5, u.client_id, 2, 4, u.shared["A/q"].shape[1]).nonzero()[:, 0]
        for u in updates[1:]
    }
    for pair in range(4):
        who = [
            (update, picks[update.client_id].tolist().index(pair))
            for update in updates[1:]
            if pair in picks[update.client_id]
        ]
        weight = sum(u.num_examples for u, _ in who)
        for role in SHAPES:
            a, b = f"A/{role}", f"B/{role}"
            row, column = state.tensors[a][:, pair], state.tensors[b][:, :, pair]
            if not who:
                assert torch.equal(row, before.tensors[a][:, pair])
                assert torch.equal(column, before.tensors[b][:, :, pair])
                continue
            rows = sum(u.num_examples * array(u.shared[a][:, at]) for u, at in who)
            columns = sum(u.num_examples * array(u.shared[b][:, :, at]) for u, at in who)
            np.testing.assert_allclose(array(row), rows / weight, atol=1e-6)
            np.testing.assert_allclose(array(column), columns / weight, atol=1e-6)
    trained = {int(pair) for chosen in picks.values() for pair in chosen}
    assert report.values["pairs_trained"] == len(trained) / 4 < 1


def test_a_client_trains_as_many_pairs_as_its_rank_and_all_get_their_turn() -> None:
    picks = [chosen_pairs(0, "a", number, 8, 2) for number in range(1, 41)]
    assert all(int(pick.sum()) == 2 for pick in picks)
    assert torch.stack(picks).any(dim=0).all()
    assert not torch.equal(chosen_pairs(0, "a", 1, 64, 32), chosen_pairs(0, "b", 1, 64, 32))
    assert torch.equal(chosen_pairs(0, "a", 1, 8, 2), picks[0])


@pytest.mark.parametrize(("params", "ranks", "letters"), ALL)
def test_the_order_of_clients_is_irrelevant(
    params: Params, ranks: Mapping[str, int], letters: str
) -> None:
    members = federation(ranks)
    updates = sent(members, letters)
    states = [close(params, members, list(o), None)[0] for o in itertools.permutations(updates)]
    first, *others = [global_function(params, state, members) for state in states]
    for other in others:
        assert relative_error(other, first) <= 1e-6
    assert {tuple(state.meta.get(HOLDERS, ())) for state in states} in ({()}, {("a", "b", "c")})


@pytest.mark.parametrize(("params", "ranks", "letters"), ALL)
def test_a_client_alone_gets_back_what_it_sent(
    params: Params, ranks: Mapping[str, int], letters: str
) -> None:
    members = federation({"a": ranks["a"]})
    updates = sent(members, letters)
    state, report = close(params, members, updates, None)
    tensors = dict(updates[0].shared)
    if letters == "B":
        tensors |= start_factors(members.clients[0], 4, 5, "A")
    expected = (
        products(tensors) if "B" in letters else {r: array(tensors[f"A/{r}"]) for r in SHAPES}
    )
    assert relative_error(global_function(params, state, members), expected) <= 1e-6
    assert report.values.get("cross_term_error", 0.0) <= 1e-6


@pytest.mark.parametrize(("params", "ranks", "letters"), ALL)
def test_updates_that_do_not_fit_are_refused(
    params: Params, ranks: Mapping[str, int], letters: str
) -> None:
    members = federation(ranks)
    good = sent(members, letters)[0]
    name = f"{letters[0]}/q"

    def changed(**tensors: torch.Tensor) -> ClientUpdate:
        shared = {**good.shared, **{key.replace("_", "/"): t for key, t in tensors.items()}}
        return ClientUpdate("a", 1, 10, shared, {}, {})

    broken = good.shared[name].clone()
    broken[0, 0, 0] = torch.nan
    missing = {key: t for key, t in good.shared.items() if key != name}
    refused = {
        "outside the federation": [ClientUpdate("z", 1, 10, good.shared, {}, {})],
        "came twice": [good, good],
        "states 0 examples": [ClientUpdate("a", 1, 0, good.shared, {}, {})],
        f"missing: '{name}'": [ClientUpdate("a", 1, 10, missing, {}, {})],
        "unknown are 'A/other'": [changed(A_other=torch.zeros(1))],
        "expected": [changed(**{name.replace("/", "_"): good.shared[name][:, :-1]})],
        "NaN": [changed(**{name.replace("/", "_"): broken})],
        "at least one": [],
    }
    for reason, updates in refused.items():
        with pytest.raises(InvalidUpdateError, match=reason):
            close(params, members, updates, None)


@pytest.mark.parametrize(
    ("params", "ranks"), [(FloraParams(), DIFFERENT), (FedExLoraParams(), SAME)]
)
def test_changes_of_the_base_add_up_beyond_full_rank(
    params: Params, ranks: Mapping[str, int]
) -> None:
    members = federation(ranks)
    state, total = None, dict.fromkeys(SHAPES, 0.0)
    for number in range(1, 5):
        updates = sent(members, seed=number, round_number=number)
        state, _ = close(params, members, updates, state)
        rest = weighted_sum(updates)
        if isinstance(params, FedExLoraParams):
            average = products(state.tensors)
            rest = {role: rest[role] - average[role] for role in SHAPES}
        total = {role: total[role] + rest[role] for role in SHAPES}
    plan = build_strategy(params).configure_round(state, members, 5, deliver=True)["a"]
    assert not any(name.startswith("earlier/") for name in plan.tensors)
    absent = ServerState(state.tensors, {**state.meta, HOLDERS: ["b", "c"]})
    plan = build_strategy(params).configure_round(absent, members, 5, deliver=True)["a"]
    found = {
        role: dense + products(plan.tensors, "latest/")[role]
        for role, dense in products(plan.tensors, "earlier/").items()
    }
    assert relative_error(found, total) <= 1e-5
    assert plan.tensors["earlier/A/q"].shape[1] == 10  # min(12, 10), though ranks add up to more


def test_bytes_are_those_of_the_formulas() -> None:
    """Values of 4 bytes, with L = 3, s_A = 12 + 20 and s_B = 10 + 14."""
    both, a, b, layer = 32 + 24, 32, 24, 3 * 4
    expected = {  # params -> up of client a, down from round 2 on
        FedItParams(): (layer * 4 * both, layer * 4 * both),
        FfaLoraParams(): (layer * 4 * b, layer * 4 * b),
        FedSaLoraParams(): (layer * 4 * a, layer * 4 * a),
        FedExLoraParams(): (layer * 4 * both, layer * (4 + 2 * 4) * both),
        FloraParams(): (layer * 4 * both, layer * (4 + 1 + 3) * both),
        FedPLoraParams(): (layer * 4 * both, layer * 4 * both),
    }
    for params, ranks, letters in ALL:
        members = federation(ranks)
        updates = sent(members, letters)
        state, _ = close(params, members, updates, None)
        plan = build_strategy(params).configure_round(state, members, 2, deliver=False)["b"]
        up, down = payload_bytes(updates[0].shared), payload_bytes(plan.tensors)
        assert (up, down) == expected[params], params.name
