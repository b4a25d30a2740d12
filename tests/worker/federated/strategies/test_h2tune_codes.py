"""Which codes a client of smaller rank holds."""

import copy

import pytest
import torch
from torch.nn import functional

from backend.contracts.params.h2tune import H2TuneParams
from tests.worker.federated.strategies.rounds import (
    at_work,
    federation_of,
    plans_of,
    run_round,
    training,
)
from tests.worker.federated.tiny import make_client
from worker.federated.client_round import take
from worker.federated.gauge import Factors
from worker.federated.roles import adapted_modules
from worker.federated.strategies.h2tune import H2Tune
from worker.federated.strategies.h2tune_codes import code_energies
from worker.federated.wire import unpack_mask

PROBED = {"gauge": "probe", "mask_warmup_rounds": 0, "joint_rounds": 0}


def test_energies_are_those_of_the_loss_gradient() -> None:
    client = make_client("a", rank=2)
    strategy = H2Tune(H2TuneParams())
    state = strategy.init_state(federation_of([client], global_rank=3), 1)
    plan = strategy.configure_round(state, federation_of([client], 3), 1, deliver=False)["a"]
    work = at_work(client, training(batch_size=100))
    modules = adapted_modules(work.model)
    source = torch.Generator().manual_seed(0)
    factors = {
        m.name: Factors(
            torch.randn(3, m.in_features, generator=source),
            torch.randn(m.out_features, 3, generator=source),
        )
        for m in modules
    }
    found = code_energies(plan, work, factors)

    # Independently: T[a, b] is worth <dL / dW, B[:, a] A[b, :]>, from the gradient of the weight.
    model = copy.deepcopy(client.model)
    objective = client.objective(work.training, model)
    batch = objective.collate(objective.encode(client.data.train))
    weights = {m.name: model.get_submodule(m.name).get_parameter("weight") for m in modules}
    for weight in weights.values():
        weight.requires_grad_(True)
    logits = objective.target_logits(model, batch)
    loss = functional.cross_entropy(logits, objective.targets(batch), reduction="sum")
    gradients = torch.autograd.grad(loss, list(weights.values()))
    by_role: dict[str, torch.Tensor] = {}
    for module, gradient in zip(modules, gradients, strict=True):
        pair = factors[module.name]
        squares = (pair.out_factor.T @ gradient @ pair.in_factor.T).pow(2)
        energy = squares.sum(0) + squares.sum(1)
        by_role[module.role] = by_role.get(module.role, 0) + energy
    expected = sum(energy / energy.sum() for energy in by_role.values())
    assert torch.allclose(found, expected, rtol=1e-3)
    assert not any(p.grad is not None for p in work.model.parameters())


@pytest.mark.parametrize("selection", ["leading", "gradient"])
def test_the_mask_names_the_codes_whose_factors_are_held(selection: str) -> None:
    strategy = H2Tune(H2TuneParams(code_selection=selection, **PROBED))
    clients = [make_client("a", rank=2, num_layers=1), make_client("b", rank=8, num_layers=1)]
    state = strategy.init_state(federation_of(clients), 1)
    small, large = run_round(strategy, state, clients, 1, training(local_steps=0))
    names = [name for name in take("factors", small.private) if name.startswith("A/")]
    packed = take("mask", small.shared)
    held = {tuple(unpack_mask(mask, 8, 2, "test").tolist()) for mask in packed.values()}
    assert len(held) == 1  # the same for all roles
    (codes,) = held
    if selection == "leading":
        assert codes == (0, 1)
    for name in names:
        everything = take("factors", large.private)[name]  # of an equal model that holds all
        assert torch.allclose(take("factors", small.private)[name], everything[list(codes)])


def test_a_second_round_fits_the_mask() -> None:
    strategy = H2Tune(H2TuneParams(code_selection="gradient", **PROBED))
    clients = [make_client("a", rank=2), make_client("b", rank=8, num_layers=2)]
    state = strategy.init_state(federation_of(clients), 1)
    updates = run_round(strategy, state, clients, 1, training())
    state, _ = strategy.aggregate(state, federation_of(clients), iter(updates))
    plan = plans_of(strategy, state, clients, 2)["a"]
    first = take("mask", updates[0].shared)
    assert all(torch.equal(first[role], mask) for role, mask in take("mask", plan.tensors).items())
    private = {update.client_id: update.private for update in updates}
    assert run_round(strategy, state, clients, 2, training(), private)[0].shared
