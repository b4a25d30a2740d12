"""Codes on which the clients' models agree before round 1."""

import copy
from collections.abc import Callable, Iterable
from dataclasses import replace

import numpy as np
import pytest
import torch

from backend.contracts.agent import Heartbeat
from backend.contracts.enums import RoundKind, TaskKind
from backend.contracts.params.h2tune import H2TuneParams
from backend.contracts.privacy import (
    DifferentialPrivacy,
    PrivacySettings,
    SecureAggregation,
)
from backend.contracts.robustness import Robustness
from backend.contracts.round_policy import RoundPolicy
from backend.contracts.training import TrainingConfig
from tests.worker.federated.tiny import make_client
from worker.federated.errors import InvalidConfigError, InvalidUpdateError
from worker.federated.gauge import record
from worker.federated.probes import probe_batches
from worker.federated.roles import adapted_modules
from worker.federated.simulation import SimulatedClient, simulate
from worker.federated.strategies.h2tune import H2Tune
from worker.federated.types import (
    ClientPlan,
    ClientUpdate,
    FederationSpec,
    LocalClient,
    Progress,
)
from worker.federated.wire import decode_plan, encode_plan

PARAMS = H2TuneParams(gauge="probe", codes="exchange")
TRAINING = TrainingConfig(local_steps=2, batch_size=4, max_length=48)
_WORDS = ("the", "film", "was", "good", "bad", "a", "happy", "sad", "story")
TEXTS = tuple(f"{one} {two}" for one in _WORDS for two in _WORDS)
NUM = len(TEXTS)
RANK = 4
STRATEGY = H2Tune(PARAMS)


def federation(
    clients: Iterable[SimulatedClient], texts: tuple[str, ...] = TEXTS
) -> FederationSpec:
    specs = sorted((client.spec() for client in clients), key=lambda spec: spec.client_id)
    return FederationSpec(RANK, tuple(specs), texts)


def answer(
    client: SimulatedClient, plan: ClientPlan, on_progress: Callable[[Progress], None] | None = None
) -> ClientUpdate:
    local = LocalClient(
        spec=client.spec(),
        model=copy.deepcopy(client.model),
        objective=client.objective(TRAINING),
        data=client.data,
        training=TRAINING,
        private=None,
        on_progress=on_progress or (lambda _: None),
    )
    return STRATEGY.train_client(decode_plan(encode_plan(plan)), local)


@pytest.fixture(scope="module")
def clients() -> tuple[SimulatedClient, ...]:
    return (
        make_client("a"),
        make_client("b", num_layers=3, width=48, seed=1),
        make_client("c", "gemma", num_layers=2, width=40, rank=2, seed=2),
    )


@pytest.fixture(scope="module")
def answers(clients: tuple[SimulatedClient, ...]) -> list[ClientUpdate]:
    members = federation(clients)
    plans = STRATEGY.configure_round(STRATEGY.init_state(members, 0), members, 0, deliver=False)
    return [answer(client, plans[client.client_id]) for client in clients]


def agreed(
    clients: Iterable[SimulatedClient], answers: Iterable[ClientUpdate]
) -> dict[str, object]:
    members = federation(clients)
    state, _ = STRATEGY.aggregate(STRATEGY.init_state(members, 0), members, answers)
    return {name: tensor for name, tensor in state.tensors.items() if name.startswith("codes/")}


def test_before_round_1_clients_get_the_texts_and_nothing_else(
    clients: tuple[SimulatedClient, ...],
) -> None:
    members = federation(clients)
    plans = STRATEGY.configure_round(STRATEGY.init_state(members, 0), members, 0, deliver=False)
    assert plans.keys() == {"a", "b", "c"}
    for plan in plans.values():
        assert (plan.kind, plan.round_number) == (RoundKind.GAUGE, 0)
        assert set(plan.tensors) == {"probes"}
    built_in = federation(clients, ())
    plans = STRATEGY.configure_round(STRATEGY.init_state(built_in, 0), built_in, 0, deliver=False)
    assert not plans["a"].tensors
    assert plans["a"].settings["probe_kinds"] == [TaskKind.CLASSIFICATION.value]


def test_a_client_sends_the_mean_projection_onto_its_scores(
    clients: tuple[SimulatedClient, ...], answers: list[ClientUpdate]
) -> None:
    client, update = clients[1], answers[1]
    assert not update.private
    assert set(update.shared) == {
        f"agreement/{role}/{side}" for role in client.spec().modules for side in ("in", "out")
    }
    tokenizer = client.objective(TRAINING).tokenizer
    assert tokenizer is not None
    seen = record(client.model, probe_batches(tokenizer, TEXTS, "text", max_length=64))
    expected = np.zeros((NUM, NUM))
    for module in adapted_modules(client.model):
        if module.role == "up":
            outputs = seen[module.name].outputs.double().numpy()
            left, values, _ = np.linalg.svd(outputs - outputs.mean(axis=0), full_matrices=False)
            left = left[:, values > values[0] * 1e-6][:, :10]  # an eighth of 81 texts
            expected += left @ left.T / 3  # L* = 3
    rows, columns = np.triu_indices(NUM)
    sent = update.shared["agreement/up/out"].numpy()
    assert sent == pytest.approx(expected[rows, columns], abs=1e-4)


def test_a_sign_of_life_may_leave_an_agent_while_its_model_reads(
    clients: tuple[SimulatedClient, ...],
) -> None:
    members = federation(clients[:1], TEXTS[:8])
    plans = STRATEGY.configure_round(STRATEGY.init_state(members, 0), members, 0, deliver=False)
    signs: list[Progress] = []
    answer(clients[0], plans["a"], signs.append)
    stages = [Heartbeat(fence=1, stage=p.stage, step=p.step, num_steps=1).stage for p in signs]
    assert stages == ["probing"]


def test_the_codes_are_those_of_all_scores_and_come_in_order(
    clients: tuple[SimulatedClient, ...], answers: list[ClientUpdate]
) -> None:
    codes = agreed(clients, answers)
    rows, columns = np.triu_indices(NUM)
    total = np.zeros((NUM, NUM))
    for update in answers:  # weighted by examples
        matrix = np.zeros((NUM, NUM))
        matrix[rows, columns] = update.shared["agreement/q/in"].double().numpy()
        total += update.num_examples * (matrix + matrix.T - np.diag(matrix.diagonal()))
    values, vectors = np.linalg.eigh(total)
    found = codes["codes/q/in"]
    assert found.shape == (NUM, RANK)
    explained = np.einsum("nc,nm,mc->c", found.numpy(), total, found.numpy()) / NUM
    assert explained == pytest.approx(values[::-1][:RANK], rel=1e-4)
    leading = vectors[:, ::-1][:, 0]
    assert abs(leading @ found[:, 0].double().numpy()) / NUM**0.5 == pytest.approx(1, abs=1e-5)


def test_the_order_of_clients_changes_nothing(
    clients: tuple[SimulatedClient, ...], answers: list[ClientUpdate]
) -> None:
    one, other = agreed(clients, answers), agreed(clients, answers[::-1])
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(other[name], tensor, atol=1e-4, rtol=1e-4)


def test_the_report_says_how_much_lies_in_the_codes(
    clients: tuple[SimulatedClient, ...], answers: list[ClientUpdate]
) -> None:
    members = federation(clients)
    state = STRATEGY.init_state(members, 0)
    _, report = STRATEGY.aggregate(state, members, answers)
    _, alone = STRATEGY.aggregate(state, members, answers[:1])
    assert (report.num_clients, alone.num_clients) == (3, 1)
    assert 0 < report.values["agreement_explained"] < 1


def test_training_follows_with_the_agreed_codes(clients: tuple[SimulatedClient, ...]) -> None:
    result = simulate(
        PARAMS, clients, num_rounds=2, training=TRAINING, global_rank=RANK, seed=0, probes=TEXTS
    )
    assert result.gauge is not None
    assert result.gauge.metrics["a"]["bytes_up_values"] == 14 * 4 * NUM * (NUM + 1) / 2
    assert len(result.rounds) == 2
    assert result.rounds[0].metrics["a"]["bytes_down"] > result.rounds[1].metrics["a"]["bytes_down"]
    moved = [t for name, t in result.state.tensors.items() if name.startswith("slots/")]
    assert max(float(tensor.abs().max()) for tensor in moved) > 0
    factor = result.private["c"]["factors/A/model.layers.0.self_attn.q_proj"]
    assert factor.shape == (2, 40)  # of rank 2: the leading two of four codes


def test_who_comes_late_gets_the_factors_of_who_was_there(
    clients: tuple[SimulatedClient, ...], answers: list[ClientUpdate]
) -> None:
    members = federation(clients)
    state = STRATEGY.init_state(members, 0)
    state, _ = STRATEGY.aggregate(state, members, answers[:2])  # without c
    first = STRATEGY.configure_round(state, members, 1, deliver=False)
    third = STRATEGY.configure_round(state, members, 3, deliver=False)
    early, late = answer(clients[2], first["c"]), answer(clients[2], third["c"])
    names = [name for name in early.private if name.startswith("factors/")]
    assert names
    assert all(torch.equal(early.private[name], late.private[name]) for name in names)


def test_roles_that_nobody_had_are_told(
    clients: tuple[SimulatedClient, ...],
) -> None:
    other = make_client("d", "gpt2", seed=4)
    members = federation([clients[0], other])
    state = STRATEGY.init_state(members, 0)
    plans = STRATEGY.configure_round(state, members, 0, deliver=False)
    state, _ = STRATEGY.aggregate(state, members, [answer(clients[0], plans["a"])])
    plan = STRATEGY.configure_round(state, members, 1, deliver=False)["d"]
    roles = {name.split("/")[1] for name in plan.tensors if name.startswith("codes/")}
    assert roles <= other.spec().modules.keys(), "codes of others' roles are none of its business"
    with pytest.raises(InvalidConfigError, match="no codes for modules of role"):
        answer(other, plan)


def test_what_is_no_mean_of_projections_is_refused(
    clients: tuple[SimulatedClient, ...], answers: list[ClientUpdate]
) -> None:
    members = federation(clients)
    state = STRATEGY.init_state(members, 0)

    def refused(update: ClientUpdate, match: str) -> None:
        with pytest.raises(InvalidUpdateError, match=match):
            STRATEGY.aggregate(state, members, [update])

    good = answers[0]
    loud = {name: 100 * tensor for name, tensor in good.shared.items()}
    refused(replace(good, shared=loud), r"eigenvalues outside .* client with the version")
    negative = {name: -tensor for name, tensor in good.shared.items()}
    refused(replace(good, shared=negative), "eigenvalues")
    short = {name: tensor[:-1] for name, tensor in good.shared.items()}
    refused(replace(good, shared=short), "expected")
    refused(replace(good, shared={}), "missing")
    refused(replace(good, client_id="z"), "outside the federation")
    with pytest.raises(InvalidUpdateError, match="came twice"):
        STRATEGY.aggregate(state, members, [good, good])
    with pytest.raises(InvalidUpdateError, match="at least one"):
        STRATEGY.aggregate(state, members, [])


def test_too_few_texts_are_refused_before_anybody_reads_them(
    clients: tuple[SimulatedClient, ...],
) -> None:
    with pytest.raises(InvalidConfigError, match="4 probe texts, but global_rank is 4"):
        STRATEGY.init_state(federation(clients, TEXTS[:4]), 0)


@pytest.mark.parametrize(
    ("privacy", "robustness", "policy"),
    [
        (PrivacySettings(secure_aggregation=SecureAggregation()), Robustness(), RoundPolicy()),
        (
            PrivacySettings(
                differential_privacy=DifferentialPrivacy(clip_norm=1.0, noise_multiplier=1.0)
            ),
            Robustness(),
            RoundPolicy(),
        ),
        (PrivacySettings(), Robustness(rule="median", max_update_norm=0.5), RoundPolicy()),
        (PrivacySettings(), Robustness(), RoundPolicy(buffer_size=2)),
    ],
    ids=["secure", "noise", "robust", "buffer"],
)
def test_protections_leave_the_codes_as_they_are(
    privacy: PrivacySettings, robustness: Robustness, policy: RoundPolicy
) -> None:
    members = [make_client(name, seed=seed) for seed, name in enumerate("abc")]
    arguments = {"num_rounds": 1, "training": TRAINING, "global_rank": RANK, "seed": 0}
    plain = simulate(PARAMS, members, probes=TEXTS, **arguments)
    result = simulate(
        PARAMS,
        members,
        probes=TEXTS,
        privacy=privacy,
        robustness=robustness,
        round_policy=policy,
        **arguments,
    )
    for name, codes in plain.state.tensors.items():
        if name.startswith("codes/"):
            torch.testing.assert_close(result.state.tensors[name], codes, atol=1e-2, rtol=0)
    assert result.gauge is not None
    assert len(result.gauge.metrics) == 3
    assert plain.gauge is not None
    explained = [g.report.values["agreement_explained"] for g in (plain.gauge, result.gauge)]
    assert explained[1] == pytest.approx(explained[0], abs=1e-4)  # known behind masks too


def test_reference_codes_come_from_the_federations_own_texts() -> None:
    client = make_client()
    strategy = H2Tune(H2TuneParams(gauge="probe"))
    members = federation([client])
    state = strategy.init_state(members, 0)
    assert state.tensors["codes"].shape == (NUM, RANK)
    plan = strategy.configure_round(state, members, 1, deliver=False)["a"]
    assert {"codes", "probes"} <= plan.tensors.keys()
    result = simulate(
        strategy.params,
        [client],
        num_rounds=1,
        training=TRAINING,
        global_rank=RANK,
        seed=0,
        probes=TEXTS,
    )
    assert result.gauge is None
    assert "factors/A/model.layers.0.self_attn.q_proj" in result.private["a"]
