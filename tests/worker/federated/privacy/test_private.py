import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from backend.contracts.metrics import MetricName
from backend.contracts.params.h2tune import H2TuneParams
from backend.contracts.params.heterotune import HeteroTuneParams
from backend.contracts.params.lora import (
    FedItParams,
    FedSaLoraParams,
    FfaLoraParams,
    HetLoraParams,
    LocalOnlyParams,
)
from backend.contracts.privacy import DifferentialPrivacy, PrivacySettings
from backend.contracts.privacy_accounting import epsilon_after
from backend.contracts.strategies import Params
from tests.worker.federated.strategies.rounds import at_work, federation_of, plans_of, training
from tests.worker.federated.tiny import make_client
from worker.federated.errors import InvalidConfigError
from worker.federated.privacy.private import (
    NoiseKeys,
    Private,
    reproducible_key,
    unpredictable_key,
    with_noise,
)
from worker.federated.simulation import SimulatedClient, simulate
from worker.federated.strategies.h2tune import H2Tune
from worker.federated.strategies.registry import build_strategy
from worker.federated.types import ClientPlan, ClientUpdate, LocalClient, Progress

PARAMS = H2TuneParams(gauge="none", train_alignment=False, mask_warmup_rounds=0)
DP = DifferentialPrivacy(noise_multiplier=0.5, clip_norm=0.2)
CONFIG = training(local_steps=2, max_eval_examples=1)


def members() -> list[SimulatedClient]:
    return [make_client("a", rank=4), make_client("b", "gpt2", num_layers=3, width=16, rank=8)]


class Talkative(H2Tune):
    """Tells the loss of a step before it trains."""

    def train_client(self, plan: ClientPlan, client: LocalClient) -> ClientUpdate:
        client.on_progress(Progress("training", 1, 2, {MetricName.TRAIN_LOSS: 1.5}))
        return super().train_client(plan, client)


def private(settings: DifferentialPrivacy = DP, keys: NoiseKeys = reproducible_key) -> Private:
    return Private(Talkative(PARAMS), PARAMS, settings, keys)


def first_update(
    strategy: Private | H2Tune, client: SimulatedClient, seen: list[Progress] | None = None
) -> ClientUpdate:
    state = strategy.init_state(federation_of([client]), 3)
    plan = plans_of(strategy, state, [client], 1)[client.client_id]
    worker = at_work(client, CONFIG)
    if seen is not None:
        worker = replace(worker, on_progress=seen.append)
    return strategy.train_client(plan, worker)


def flat(updates: Sequence[ClientUpdate]) -> torch.Tensor:
    values = [u.shared[n].flatten() for u in updates for n in sorted(u.shared) if "values" in n]
    return torch.cat(values)


def test_only_the_secret_part_of_an_update_changes() -> None:
    client = members()[0]
    plain, noised = first_update(H2Tune(PARAMS), client), first_update(private(), client)
    assert noised.shared.keys() == plain.shared.keys()
    for name, tensor in plain.shared.items():
        assert torch.equal(tensor, noised.shared[name]) is not name.startswith("values/"), name
    assert all(torch.equal(plain.private[n], t) for n, t in noised.private.items())
    difference = flat([noised]) - min(1, 0.2 / float(flat([plain]).norm())) * flat([plain])
    assert float(difference.std()) == pytest.approx(0.5 * 0.2, rel=0.1)


def test_a_key_from_the_system_is_new_every_time_and_one_from_the_seed_is_not() -> None:
    client = members()[0]
    again = [flat([first_update(private(), client)]) for _ in range(2)]
    assert torch.equal(*again)
    fresh = [flat([first_update(private(keys=unpredictable_key), client)]) for _ in range(2)]
    assert not torch.equal(*fresh)


def test_noise_differs_between_clients_and_rounds() -> None:
    strategy = private()
    state = strategy.init_state(federation_of(members()), 3)
    plans = [
        plan for number in (1, 2) for plan in plans_of(strategy, state, members(), number).values()
    ]
    assert len({reproducible_key(plan) for plan in plans}) == 4


def test_measurements_stay_with_the_client_unless_published() -> None:
    client, seen = members()[0], list[Progress]()
    quiet = first_update(private(), client, seen)
    assert MetricName.EPSILON in quiet.metrics
    assert MetricName.BYTES_UP in quiet.metrics
    for name in ("TRAIN_LOSS", "ACCURACY_AFTER_TRAINING", "UPDATE_NORM", "SHARED_CHANGE"):
        assert MetricName[name] not in quiet.metrics
    assert seen
    assert not any(progress.values for progress in seen)
    published = DP.model_copy(update={"publish_measurements": True})
    loud = first_update(private(published), client, seen := [])
    assert MetricName.TRAIN_LOSS in loud.metrics
    assert any(progress.values for progress in seen)
    norm = float(flat([first_update(H2Tune(PARAMS), client)]).double().norm())
    assert loud.metrics[MetricName.UPDATE_NORM] == pytest.approx(norm, rel=1e-5)


def test_a_delivered_accuracy_is_withheld_too(tmp_path: Path) -> None:
    result = simulate(
        PARAMS,
        [make_client()],
        num_rounds=1,
        training=CONFIG,
        global_rank=8,
        seed=0,
        output=tmp_path,
        privacy=PrivacySettings(differential_privacy=DP),
    )
    assert result.delivered == {"a": {}}
    assert (tmp_path / "a" / "adapter_model.safetensors").exists()


def test_a_simulation_adds_up_what_it_spends_and_repeats_itself() -> None:
    clients = members()
    results = [
        simulate(
            PARAMS,
            copy.copy(clients),
            num_rounds=2,
            training=CONFIG,
            global_rank=8,
            seed=0,
            privacy=privacy,
        )
        for privacy in (
            PrivacySettings(differential_privacy=DP),
            PrivacySettings(differential_privacy=DP),
            PrivacySettings(),
        )
    ]
    for number, round_ in enumerate(results[0].rounds, start=1):
        for metrics in round_.metrics.values():
            assert metrics[MetricName.EPSILON] == epsilon_after(number, 0.5, 1e-5)
    noised, repeated, plain = [result.state.tensors for result in results]
    assert all(torch.equal(noised[name], repeated[name]) for name in noised)
    assert not any(torch.equal(noised[name], plain[name]) for name in noised if "slots" in name)


@pytest.mark.parametrize(
    ("params", "reason"),
    [
        (LocalOnlyParams(), "shares nothing"),
        (PARAMS.model_copy(update={"mask_warmup_rounds": 1}), "set `mask_warmup_rounds` to 0"),
        (PARAMS.model_copy(update={"train_alignment": True}), "set `train_alignment` to false"),
        (PARAMS.model_copy(update={"conflict": "cmga"}), "set `conflict` to `none`"),
        (PARAMS.model_copy(update={"aggregation": "mean"}), "set `aggregation` to `delta`"),
        (PARAMS.model_copy(update={"code_selection": "gradient"}), "set `code_selection` to"),
        (HeteroTuneParams(conflict="pairwise"), "set `conflict` to `none`"),
        (HetLoraParams(), "choose a strategy with linear aggregation"),
    ],
)
def test_what_cannot_be_protected_is_refused(params: Params, reason: str) -> None:
    with pytest.raises(InvalidConfigError, match=reason):
        with_noise(H2Tune(PARAMS), params, DP, reproducible_key)


@pytest.mark.parametrize(
    "params",
    [FedItParams(), FfaLoraParams(), FedSaLoraParams(), HeteroTuneParams(conflict="none")],
    ids=lambda params: params.name,
)
def test_every_linear_strategy_sends_what_it_received_plus_a_clipped_change(params: Params) -> None:
    """Without noise to speak of, and clipped to nothing, what is sent is what was received."""
    faint = DifferentialPrivacy(noise_multiplier=1e-6, clip_norm=1e-3)
    client = make_client()
    strategy = build_strategy(params)
    state = strategy.init_state(federation_of([client]), 3)
    plan = plans_of(strategy, state, [client], 1)["a"]
    plain = strategy.train_client(plan, at_work(client, CONFIG))
    private = Private(strategy, params, faint, reproducible_key)
    noised = private.train_client(plan, at_work(client, CONFIG))
    changes = isinstance(params, HeteroTuneParams)
    sent, change = [
        torch.cat([
            (u.shared[n] - (0 if changes else plan.tensors[n])).double().flatten()
            for n in sorted(u.shared)
        ])
        for u in (noised, plain)
    ]  # fmt: skip
    assert float(change.norm()) > 1e-3
    assert torch.allclose(sent, change * (1e-3 / change.norm()), atol=1e-6)
    private.aggregate(state, federation_of([client]), iter([noised]))


def test_groups_are_noised_too() -> None:
    params = FedItParams(group_by="architecture")
    clients = [make_client("a"), make_client("b"), make_client("c", "gpt2", num_layers=3)]
    result = simulate(
        params,
        clients,
        num_rounds=1,
        training=CONFIG,
        global_rank=8,
        seed=0,
        privacy=PrivacySettings(differential_privacy=DP),
    )
    assert all(MetricName.EPSILON in metrics for metrics in result.rounds[0].metrics.values())


def test_no_settings_leave_the_strategy_alone() -> None:
    strategy = H2Tune(PARAMS)
    assert with_noise(strategy, PARAMS, None, reproducible_key) is strategy
