"""A gauge must not depend on the coordinates in which a model happens to think.

A model with RMSNorm, its gains folded into the next weights, stays the same function when its
hidden space is turned by any orthogonal matrix (as in SliceGPT, arXiv 2401.15024).
"""

import copy
from dataclasses import replace
from typing import get_args

import pytest
import torch
from transformers import LlamaForCausalLM

from backend.contracts.params.h2tune import H2TuneParams, Writing
from backend.contracts.training import TrainingConfig
from tests.worker.federated.strategies.rounds import federation_of, run_round
from tests.worker.federated.tiny import make_client, make_inputs
from worker.federated.simulation import SimulatedClient, simulate
from worker.federated.strategies.h2tune import H2Tune

PARAMS = H2TuneParams(
    gauge="probe", joint_rounds=0, mask_warmup_rounds=0, train_alignment=False, shared_fraction=1.0
)
TRAINING = TrainingConfig(local_steps=3, batch_size=4, max_length=48)


@torch.no_grad()
def folded(model: LlamaForCausalLM, turn: torch.Tensor) -> LlamaForCausalLM:
    """The same function without gains, whose hidden space is turned: x' = x Q at every place."""
    model = copy.deepcopy(model)

    def reads(weight: torch.Tensor, gain: torch.Tensor) -> None:  # W x -> W diag(gain) Q x'
        weight.copy_(((weight.double() * gain.double()) @ turn).float())

    def writes(weight: torch.Tensor) -> None:
        weight.copy_((turn.T @ weight.double()).float())

    body = model.model
    body.embed_tokens.weight.copy_((body.embed_tokens.weight.double() @ turn).float())
    for layer in body.layers:
        attention, mlp = layer.self_attn, layer.mlp
        for module in (attention.q_proj, attention.k_proj, attention.v_proj):
            reads(module.weight, layer.input_layernorm.weight)
        for module in (mlp.gate_proj, mlp.up_proj):
            reads(module.weight, layer.post_attention_layernorm.weight)
        writes(attention.o_proj.weight)
        writes(mlp.down_proj.weight)
        layer.input_layernorm.weight.fill_(1)
        layer.post_attention_layernorm.weight.fill_(1)
    reads(model.lm_head.weight, body.norm.weight)
    body.norm.weight.fill_(1)
    return model


@pytest.fixture(scope="module")
def clients() -> tuple[SimulatedClient, SimulatedClient]:
    plain = make_client("a", width=32, rank=4)
    assert isinstance(plain.model, LlamaForCausalLM)
    with torch.no_grad():  # gains that differ, so that folding them matters
        for name, weight in plain.model.named_parameters():
            if "norm" in name:
                weight.uniform_(0.5, 1.5, generator=torch.Generator().manual_seed(len(name)))
    width = plain.model.config.hidden_size
    straight = torch.eye(width, dtype=torch.float64)
    generator = torch.Generator().manual_seed(5)
    turn = torch.linalg.qr(torch.randn(width, width, dtype=torch.float64, generator=generator)).Q
    return (
        replace(plain, model=folded(plain.model, straight)),
        replace(plain, model=folded(plain.model, turn)),
    )


def test_the_turned_model_is_the_same_function(
    clients: tuple[SimulatedClient, SimulatedClient],
) -> None:
    plain, other = (client.model(**make_inputs("llama")).logits for client in clients)
    torch.testing.assert_close(other, plain, atol=1e-4, rtol=1e-4)
    embeddings = [client.model.get_input_embeddings().weight for client in clients]
    assert not torch.allclose(*embeddings, atol=0.01)


@pytest.mark.parametrize("writing", get_args(Writing))
def test_a_turned_hidden_space_turns_the_factors_and_nothing_that_is_shared(
    clients: tuple[SimulatedClient, SimulatedClient], writing: Writing
) -> None:
    params = PARAMS.model_copy(update={"writing": writing})
    plain, other = (
        simulate(params, [client], num_rounds=3, training=TRAINING, global_rank=4, seed=0)
        for client in clients
    )
    assert torch.equal(plain.state.tensors["codes"], other.state.tensors["codes"])
    names = [name for name in plain.state.tensors if name.startswith("slots/")]
    assert any(float(plain.state.tensors[name].abs().max()) > 1e-3 for name in names)
    for name in names:
        torch.testing.assert_close(
            other.state.tensors[name], plain.state.tensors[name], atol=2e-4, rtol=2e-3
        )
    factor = "factors/A/model.layers.1.self_attn.q_proj"
    assert not torch.allclose(plain.private["a"][factor], other.private["a"][factor], atol=1e-2)


def test_who_joins_in_round_three_has_the_gauge_of_round_one() -> None:
    strategy = H2Tune(PARAMS)
    early, late = make_client("a", rank=4), make_client("b", rank=4, seed=1)
    both = [early, late]
    federation = federation_of(both)
    state = strategy.init_state(federation, 3)
    first = {u.client_id: u for u in run_round(strategy, state, both, 1, TRAINING)}
    private = {"a": first["a"].private}
    for number in (1, 2):
        updates = run_round(
            strategy, state, [early], number, TRAINING, private if number > 1 else {}
        )
        state, _ = strategy.aggregate(state, federation, iter(updates))
        private = {update.client_id: update.private for update in updates}
    joined = {u.client_id: u for u in run_round(strategy, state, both, 3, TRAINING, private)}["b"]
    names = [name for name in joined.private if name.startswith("factors/")]
    assert names
    for name in names:
        assert torch.equal(joined.private[name], first["b"].private[name])
