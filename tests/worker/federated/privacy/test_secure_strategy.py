from collections.abc import Callable, Collection
from dataclasses import replace
from functools import partial

import pytest
import torch

from backend.contracts.metrics import MetricName
from backend.contracts.params.h2tune import H2TuneParams
from backend.contracts.params.heterotune import HeteroTuneParams
from backend.contracts.params.lora import (
    FedItParams,
    FedSaLoraParams,
    FfaLoraParams,
    FlexLoraParams,
    LocalOnlyParams,
)
from backend.contracts.privacy import (
    DifferentialPrivacy,
    PrivacySettings,
    SecureAggregation,
    threshold_of,
)
from backend.contracts.strategies import Params
from tests.worker.federated.strategies.rounds import federation_of, run_round, training
from tests.worker.federated.tiny import make_client
from worker.federated.errors import InvalidConfigError, InvalidUpdateError
from worker.federated.privacy.secure_aggregation.errors import ProtocolError
from worker.federated.privacy.secure_strategy import SecurelyAggregated, simulated_opening
from worker.federated.simulation import SimulatedClient, SimulationResult, simulate
from worker.federated.strategies.h2tune import H2Tune
from worker.federated.strategies.registry import build_strategy
from worker.federated.strategy import Strategy
from worker.federated.types import FederationSpec

H2TUNE = H2TuneParams(gauge="none", train_alignment=False, mask_warmup_rounds=0)
SECURE = PrivacySettings(secure_aggregation=SecureAggregation(value_range=4.0))
STEP = 4.0 / 2**30
CONFIG = training(local_steps=2, max_eval_examples=1)  # the first moves B only


def members() -> list[SimulatedClient]:
    """Four clients of different families, depths and amounts of data, but of one rank."""
    return [
        make_client("a", "llama", num_layers=2, num_train=8),
        make_client("b", "gpt2", num_layers=3, width=16, num_train=16, seed=1),
        make_client("c", "llama", num_layers=2, width=16, num_train=24, seed=2),
        make_client("d", "llama", num_layers=2, num_train=16, seed=3),
    ]


def alike() -> list[SimulatedClient]:
    return [make_client(name, num_train=8 * n) for n, name in enumerate("abcd", start=1)]


run: Callable[..., SimulationResult] = partial(
    simulate, num_rounds=1, training=CONFIG, global_rank=8, seed=0
)


def largest_difference(one: SimulationResult, other: SimulationResult) -> float:
    assert one.state.tensors.keys() == other.state.tensors.keys()
    return max(
        float((tensor.double() - other.state.tensors[name].double()).abs().max())
        for name, tensor in one.state.tensors.items()
    )


@pytest.mark.parametrize("aggregation", ["delta", "mean", "coverage"])
def test_one_secure_round_of_h2tune_is_a_plain_one_up_to_rounding(aggregation: str) -> None:
    params = H2TUNE.model_copy(update={"aggregation": aggregation})
    clients = [client for client in members() if client.client_id != "b"]  # equal roles
    secure = run(params, clients, privacy=SECURE)
    plain = run(params, clients)
    # Divided by the least covered share of a slot, a rounding error of half a step a client grows.
    assert largest_difference(secure, plain) < 100 * 3 * STEP / 2 + 1e-7
    assert not any(
        torch.equal(secure.state.tensors[name], make) for name, make in start(params).items()
    )
    report = secure.rounds[0].report
    assert report.num_clients == 3
    assert report.values["rounding_error_bound"] == pytest.approx(3 * STEP / 2)
    assert "update_cosine" in plain.rounds[0].report.values
    assert "update_cosine" not in report.values  # it would be that of equal copies


def start(params: H2TuneParams) -> dict[str, torch.Tensor]:
    clients = [client for client in members() if client.client_id != "b"]
    return H2Tune(params).init_state(federation_of(clients), 0).tensors


def test_who_goes_missing_is_left_out_as_if_it_had_never_trained() -> None:
    strategy = H2Tune(H2TUNE)
    clients = alike()
    state = strategy.init_state(federation_of(clients), 0)
    updates = run_round(strategy, state, clients, 1, CONFIG)
    settings = SecureAggregation(value_range=4.0)
    opening = simulated_opening(settings, lambda number: ["b"])
    secure = SecurelyAggregated(strategy, H2TUNE, settings, opening)
    opened, report = secure.aggregate(state, federation_of(clients), iter(updates))
    without_b = [update for update in updates if update.client_id != "b"]
    plain, _ = strategy.aggregate(state, federation_of(clients), iter(without_b))
    for name, tensor in plain.tensors.items():
        assert torch.allclose(opened.tensors[name], tensor, atol=1e-6), name
    assert (report.num_clients, report.values["num_dropouts"]) == (3, 1)


def test_a_later_round_goes_on_with_everybody() -> None:
    def second_only(number: int) -> Collection[str]:
        return ["d"] if number == 2 else []

    result = run(H2TUNE, alike(), num_rounds=3, privacy=SECURE, dropouts=second_only)
    assert [round_.report.num_clients for round_ in result.rounds] == [4, 3, 4]


def test_masks_are_drawn_anew_and_change_nothing() -> None:
    once, again = (run(H2TUNE, alike(), privacy=SECURE) for _ in range(2))
    assert all(torch.equal(again.state.tensors[n], t) for n, t in once.state.tensors.items())


def test_noised_updates_can_be_added_up_securely() -> None:
    both = PrivacySettings(
        differential_privacy=DifferentialPrivacy(noise_multiplier=0.1, clip_norm=0.1),
        secure_aggregation=SecureAggregation(value_range=4.0),
    )
    noise_only = both.model_copy(update={"secure_aggregation": None})
    secure = run(H2TUNE, alike(), privacy=both)
    noised = run(H2TUNE, alike(), privacy=noise_only)
    assert largest_difference(secure, noised) < 1e-6
    assert all(MetricName.EPSILON in m for m in secure.rounds[0].metrics.values())


def test_too_many_dropouts_end_the_round_with_a_sentence() -> None:
    with pytest.raises(ProtocolError, match="2 clients arrived, the threshold is 3"):
        run(H2TUNE, alike(), privacy=SECURE, dropouts=lambda number: ["a", "b"])


def test_a_value_out_of_range_ends_the_round_with_a_sentence() -> None:
    narrow = PrivacySettings(secure_aggregation=SecureAggregation(value_range=1e-6))
    with pytest.raises(ProtocolError, match="raise value_range"):
        run(H2TUNE, alike(), privacy=narrow)


@pytest.mark.parametrize(
    ("params", "reason"),
    [
        (LocalOnlyParams(), "shares nothing"),
        (H2TUNE.model_copy(update={"mask_warmup_rounds": 1}), "set `mask_warmup_rounds` to 0"),
        (H2TUNE.model_copy(update={"train_alignment": True}), "set `train_alignment` to false"),
        (H2TUNE.model_copy(update={"conflict": "cmga"}), "set `conflict` to `none`"),
        (H2TUNE.model_copy(update={"layout": "mask"}), "set `layout` to `block`"),
        (FedItParams(group_by="architecture"), "set `group_by` to `none`"),
        (HeteroTuneParams(), "set `conflict` to `none`"),
        (FlexLoraParams(), "choose a strategy with linear aggregation"),
    ],
)
def test_what_cannot_be_added_up_is_refused(params: Params, reason: str) -> None:
    with pytest.raises(InvalidConfigError, match=reason):
        run(params, alike(), privacy=SECURE)


@pytest.mark.parametrize(
    "params",
    [FedItParams(), FfaLoraParams(), FedSaLoraParams(), HeteroTuneParams(conflict="none")],
    ids=lambda params: params.name,
)
def test_every_linear_strategy_gives_the_plain_result_up_to_rounding(params: Params) -> None:
    secure = run(params, alike()[:3], privacy=SECURE)
    plain = run(params, alike()[:3])
    assert largest_difference(secure, plain) < 3 * STEP / 2 + 1e-7


def protected(strategy: Strategy, params: Params) -> SecurelyAggregated:
    settings = SecureAggregation()
    return SecurelyAggregated(strategy, params, settings, simulated_opening(settings))


def refusals(params: Params, clients: list[SimulatedClient]) -> dict[str, str]:
    strategy = protected(build_strategy(params), params)
    return {r.client_id: r.reason for r in strategy.check(federation_of(clients))}


def test_entries_of_one_client_alone_are_refused() -> None:
    clients = [*alike()[:3], make_client("d", rank=8)]
    found = refusals(H2TUNE, clients)
    assert found.keys() == {"d"}
    assert "rank 8, 2 layers" in found["d"]
    assert refusals(H2TUNE.model_copy(update={"sparsity": 0.75}), clients) == {}
    assert refusals(H2TUNE, members()).keys() == {"b"}  # GPT-2 has other module roles
    deeper = [*alike()[:3], make_client("d", num_layers=3)]
    assert refusals(HeteroTuneParams(conflict="none"), deeper).keys() == {"d"}
    assert refusals(HeteroTuneParams(conflict="none"), alike()) == {}


def test_two_clients_are_too_few() -> None:
    assert "needs 3 clients, this federation has 2" in refusals(H2TUNE, alike()[:2])["a"]
    assert protected(H2Tune(H2TUNE), H2TUNE).check(FederationSpec(8, ())) == []


@pytest.mark.parametrize(
    ("threshold", "num_clients", "expected"),
    [(None, 3, 3), (None, 4, 3), (None, 10, 7), (4, 10, 4)],
)
def test_two_thirds_must_stay(threshold: int | None, num_clients: int, expected: int) -> None:
    assert threshold_of(SecureAggregation(threshold=threshold), num_clients) == expected


def test_updates_that_differ_in_shape_are_refused() -> None:
    strategy = H2Tune(H2TUNE)
    clients = alike()[:3]
    state = strategy.init_state(federation_of(clients), 0)
    updates = run_round(strategy, state, clients, 1, training(local_steps=0))
    shorter = {name: tensor[:1] for name, tensor in updates[1].shared.items()}
    updates[1] = replace(updates[1], shared=shorter)
    secure = protected(strategy, H2TUNE)
    with pytest.raises(InvalidUpdateError, match="'a' and 'b' differ in names or shapes"):
        secure.aggregate(state, federation_of(clients), iter(updates))
    with pytest.raises(InvalidUpdateError, match="No client"):
        secure.aggregate(state, federation_of(clients), iter([]))
