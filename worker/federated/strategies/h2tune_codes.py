"""Which of the R common codes a client of smaller rank holds.

A client of rank r takes an r x r block of the R x R matrices. Codes come in the order of their
variance in public texts, but what varies most need not matter for a task. Before training, the
gradient of the client's own loss with respect to a full T = 0 says where the loss can fall:

    G_jk = B_jk^T (dL / dy_jk) (A_jk x)^T  (R x R),  energy(c) = |G_jk[c, :]|^2 + |G_jk[:, c]|^2

summed over all layers j and roles k, each role divided by its total. The client keeps the r
codes of highest energy, the same for all roles. Only the mask that follows leaves the client.
"""

from collections.abc import Callable, Mapping

import torch
from torch import nn
from torch.nn import functional

from worker.federated.gauge import Factors
from worker.federated.roles import AdaptedModule, adapted_modules
from worker.federated.training import endless_batches, steps_per_epoch
from worker.federated.types import ClientPlan, LocalClient, Tensors

Hook = Callable[[nn.Module, tuple[torch.Tensor, ...], torch.Tensor], torch.Tensor]


def code_energies(
    plan: ClientPlan, client: LocalClient, factors: Mapping[str, Factors]
) -> torch.Tensor:
    """What each code could do for the client's training loss, (R,) fp32, at least 0.

    Args:
        plan: its seed orders the examples.
        client: with its base model as it came, without an adapter; one pass over its examples.
        factors: by module, for all R codes.
    """
    gradients = middle_gradients(client, factors, plan.seed)
    return _energies(adapted_modules(client.model), gradients, plan.global_rank)


def middle_gradients(client: LocalClient, factors: Mapping[str, Factors], seed: int) -> Tensors:
    """Gradients of the client's training loss with respect to T = 0, summed over its examples.

    Args:
        client: with its base model as it came, without an adapter; one pass over its examples.
        factors: by module, for R codes each.
        seed: orders the examples.

    Returns:
        (R, R) fp32 by module name; without modules that the loss does not depend on.
    """
    model = client.model
    modules = adapted_modules(model)
    middles = {
        module.name: torch.zeros(2 * factors[module.name].in_factor.shape[:1], requires_grad=True)
        for module in modules
    }
    handles = [
        model.get_submodule(name).register_forward_hook(_with_update(factors[name], middle))
        for name, middle in middles.items()
    ]
    objective, config = client.objective, client.training
    rows = objective.encode(client.data.train)
    batches = endless_batches(rows, config, objective.collate, seed, client.spec.client_id, "codes")
    try:
        for _ in range(steps_per_epoch(config, len(rows))):
            for batch in next(batches):
                on_device = {name: tensor.to(model.device) for name, tensor in batch.items()}
                logits = objective.target_logits(model, on_device)
                targets = objective.targets(on_device)
                loss = functional.cross_entropy(logits.float(), targets, reduction="sum")
                torch.autograd.backward(loss, inputs=list(middles.values()))
    finally:
        for handle in handles:
            handle.remove()
    return {name: middle.grad for name, middle in middles.items() if middle.grad is not None}


def _with_update(factors: Factors, middle: torch.Tensor) -> Hook:
    def hook(_: nn.Module, given: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        x, device = given[0], output.device
        codes = functional.linear(x.float(), factors.in_factor.to(device))
        update = functional.linear(
            functional.linear(codes, middle.to(device)), factors.out_factor.to(device)
        )
        return output + update.to(output.dtype)

    return hook


def _energies(modules: list[AdaptedModule], gradients: Tensors, num_codes: int) -> torch.Tensor:
    by_role: dict[str, torch.Tensor] = {}
    for module in modules:
        gradient = gradients.get(module.name)
        if gradient is None:
            continue
        squares = gradient.pow(2)
        energy = squares.sum(dim=0) + squares.sum(dim=1)
        by_role[module.role] = by_role.get(module.role, torch.zeros(num_codes)) + energy
    total = torch.zeros(num_codes)
    for energy in by_role.values():
        total += energy / energy.sum().clamp_min(torch.finfo(energy.dtype).tiny)
    return total
