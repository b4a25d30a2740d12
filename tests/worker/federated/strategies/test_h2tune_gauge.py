"""H2Tune with the probe gauge: what the server sends, and what clients make of it."""

from dataclasses import replace

import pytest
import torch
from transformers import PreTrainedModel

from backend.contracts.enums import TaskKind
from backend.contracts.params.h2tune import H2TuneParams
from backend.contracts.probe_sets import NUM_BUILT_IN
from backend.contracts.training import TrainingConfig
from tests.worker.federated.tiny import make_client, make_tokenizer
from worker.federated.errors import InvalidConfigError
from worker.federated.objectives.classification import HeadObjective, TextInputs
from worker.federated.simulation import SimulatedClient, simulate
from worker.federated.strategies.h2tune import H2Tune
from worker.federated.strategies.probe_texts import public_prompts
from worker.federated.types import FederationSpec, LocalClient

PARAMS = H2TuneParams(
    gauge="probe", joint_rounds=0, mask_warmup_rounds=0, train_alignment=False, shared_fraction=1.0
)
TRAINING = TrainingConfig(local_steps=2, batch_size=4, max_length=48)


def federation(*clients: SimulatedClient, rank: int = 4) -> FederationSpec:
    return FederationSpec(rank, tuple(client.spec() for client in clients))


def test_prompts_are_public_and_the_same_for_all() -> None:
    kinds = [TaskKind.CLASSIFICATION, TaskKind.FILL_IN]
    prompts = public_prompts(kind.value for kind in kinds)
    assert prompts == public_prompts(kind.value for kind in reversed(kinds))
    assert len(set(prompts)) == NUM_BUILT_IN
    assert {prompt.split(":")[0] for prompt in prompts} == {"Text", "Question"}
    assert all(prompt.endswith(("Label:\n", "Answer:\n")) for prompt in prompts)  # no answers


def test_codes_go_down_once() -> None:
    client = make_client()
    strategy, members = H2Tune(PARAMS), federation(client)
    state = strategy.init_state(members, 0)
    assert state.tensors["codes"].shape == (NUM_BUILT_IN, 4)
    assert all(float(state.tensors[f"slots/{role}"].abs().max()) == 0 for role in ("q", "down"))
    first = strategy.configure_round(state, members, 1, deliver=False)["a"]
    assert "codes" in first.tensors
    result = simulate(PARAMS, [client], num_rounds=1, training=TRAINING, global_rank=4, seed=0)
    second = strategy.configure_round(result.state, members, 2, deliver=False)["a"]
    assert "codes" not in second.tensors


def test_factors_stay_private_and_start_without_an_effect() -> None:
    one, two = make_client("a"), make_client("b", "gemma", num_layers=3, width=48, rank=2, seed=1)
    result = simulate(PARAMS, [one, two], num_rounds=1, training=TRAINING, global_rank=4, seed=0)
    factors = result.private["b"]
    name = "factors/A/model.layers.0.self_attn.q_proj"
    assert factors[name].shape == (2, 48)  # the first two of four codes
    assert float(factors[name].abs().max()) > 0
    metrics = result.rounds[0].metrics["a"]
    untrained = one.objective(TRAINING).mean_loss(one.model, one.data.validation)
    assert metrics["validation_loss_before_training"] == pytest.approx(untrained, abs=1e-4)
    assert not any(name.startswith("factors") for name in result.state.tensors)


def test_a_late_client_gets_the_gauge_of_an_early_one() -> None:
    early, late = make_client("a"), make_client("b", seed=1)
    alone = simulate(PARAMS, [late], num_rounds=1, training=TRAINING, global_rank=4, seed=0)
    among = simulate(PARAMS, [early, late], num_rounds=1, training=TRAINING, global_rank=4, seed=0)
    for name, tensor in alone.private["b"].items():
        if name.startswith("factors/"):
            assert torch.equal(tensor, among.private["b"][name])


def test_a_plan_without_codes_is_refused() -> None:
    client = make_client()
    strategy, members = H2Tune(PARAMS), federation(client)
    state = strategy.init_state(members, 0)
    plan = strategy.configure_round(state, members, 1, deliver=False)["a"]
    del plan.tensors["codes"]
    local = LocalClient(
        spec=client.spec(),
        model=client.model,
        objective=client.objective(TRAINING),
        data=client.data,
        training=TRAINING,
        private=None,
    )
    with pytest.raises(InvalidConfigError, match="gauge is 'probe'"):
        strategy.train_client(plan, local)


def encoder(client_id: str, family: str) -> SimulatedClient:
    def bind(model: PreTrainedModel, config: TrainingConfig) -> HeadObjective:
        return HeadObjective(model, TextInputs(make_tokenizer(), config.max_length), ("no", "yes"))

    client = make_client(client_id, family)
    return replace(client, bind_objective=bind)


def test_encoders_with_heads_get_the_gauge_beside_decoders() -> None:
    members = [encoder("a", "bert"), encoder("b", "distilbert"), make_client("c")]
    result = simulate(PARAMS, members, num_rounds=1, training=TRAINING, global_rank=4, seed=0)
    for client in members:
        factors = [
            tensor
            for name, tensor in result.private[client.client_id].items()
            if name.startswith("factors/A/")
        ]
        assert len(factors) == 2 * len(client.spec().modules)
        assert all(float(factor.abs().max()) > 0 for factor in factors)
    head = HeadObjective(members[0].model, TextInputs(make_tokenizer(), 48), ("no", "yes"))
    assert head.tokenizer is not None


def test_pictures_are_refused_with_a_sentence() -> None:
    client = make_client("a")
    images = replace(client, data=replace(client.data, task=TaskKind.IMAGE_CLASSIFICATION))
    (refusal,) = H2Tune(PARAMS).check(federation(images))
    assert "'image_classification'" in refusal.reason
    assert "choose another gauge" in refusal.reason
