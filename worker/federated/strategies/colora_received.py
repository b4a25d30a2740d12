"""What a Co-LoRA client does with the LoRAs of its group: a frozen branch with a learned gate.

    y += sigma(h) dB dA x      dA (k, in), dB (out, k): received; h: a scalar per linear, private

dB has the senders' scales in it, so there is none here.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import nn
from torch.nn import functional

from worker.federated.client_round import take
from worker.federated.low_rank import LowRank, products_of
from worker.federated.roles import AdaptedModule
from worker.federated.types import ClientPlan, LocalClient
from worker.federated.wire import TensorSpec, require_tensors

GATE_START = 6.0
"""h of a new client: sigma is .998, so what equal models learned counts in full.

Measured on one seed of `examples/sharing/all_strategies.toml`, mean accuracy: .526 from h = 0, .573
from 2, .587 from 6; alone .467. A gate moves by about the learning rate a step, so in a short run
it stays near its start; at a rate of .05 it followed the few training rows (.507 from h = 0).
"""


class ReceivedLora(nn.Module):
    """A linear layer with sigma(h) dB dA x on top, in fp32; just the layer until `put`."""

    in_factor: torch.Tensor
    out_factor: torch.Tensor

    def __init__(self, base_layer: nn.Module, module: AdaptedModule) -> None:
        super().__init__()
        self.base_layer = base_layer
        device = next(base_layer.parameters()).device
        self.in_factor = nn.Buffer(torch.zeros(0, module.in_features, device=device))
        self.out_factor = nn.Buffer(torch.zeros(module.out_features, 0, device=device))
        self.gate = nn.Parameter(torch.full((), GATE_START, device=device))

    def put(self, in_factor: torch.Tensor, out_factor: torch.Tensor) -> None:
        """Takes dA (k, in_features) and dB (out_features, k) of any rank k."""
        device = self.gate.device
        self.in_factor, self.out_factor = in_factor.to(device), out_factor.to(device)

    @property
    def rank(self) -> int:
        """The rank k of what was received, 0 before anything was."""
        return self.in_factor.shape[0]

    def gated_out_factor(self) -> torch.Tensor:
        """sigma(h) dB, (out_features, k)."""
        return torch.sigmoid(self.gate) * self.out_factor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., in_features) -> (..., out_features), in the dtype of the base layer."""
        result: torch.Tensor = self.base_layer(x)
        if self.rank == 0:
            return result
        codes = functional.linear(x.to(self.in_factor.dtype), self.in_factor)
        update = torch.sigmoid(self.gate) * functional.linear(codes, self.out_factor)
        return result + update.to(result.dtype)


def received_loras(plan: ClientPlan, client: LocalClient) -> dict[str, LowRank]:
    """By role, the mixture of the group's LoRAs that a plan brings; empty where it brings none.

    Raises:
        InvalidUpdateError: a factor is missing, unknown, misshaped or not finite.
    """
    received = take("lora", plan.tensors)
    if not received:
        return {}
    num_layers = client.spec.architecture.num_layers
    expected = {}
    for role, shape in client.spec.modules.items():
        factor = received.get(f"A/{role}")
        rank = factor.shape[1] if factor is not None and factor.dim() == 3 else 0
        expected[f"A/{role}"] = TensorSpec((num_layers, rank, shape.in_features))
        expected[f"B/{role}"] = TensorSpec((num_layers, shape.out_features, rank))
    require_tensors(received, expected, f"the plan of client {plan.client_id!r}")
    return products_of(received)


def add_branches(model: nn.Module, modules: Sequence[AdaptedModule]) -> dict[str, ReceivedLora]:
    """Puts an empty branch below the LoRA of every adapted module; by module name."""
    branches = {}
    for module in modules:
        layer = model.get_submodule(module.name)
        base_layer = layer.get_submodule("base_layer")
        branches[module.name] = ReceivedLora(base_layer, module)
        layer.base_layer = branches[module.name]
    return branches


def put_received(
    branches: Mapping[str, ReceivedLora],
    modules: Sequence[AdaptedModule],
    plan: ClientPlan,
    client: LocalClient,
) -> None:
    """Puts what a plan brings into the branches; nothing where there are none.

    Args:
        branches: as `add_branches` gave them.
        modules: all adapted ones.
        plan: of this round.
        client: whose shapes the factors must fit.

    Raises:
        InvalidUpdateError: see `received_loras`.
    """
    loras = received_loras(plan, client) if branches else {}
    for module in modules:
        if module.role in loras:
            product = loras[module.role]
            branches[module.name].put(product.a[module.layer], product.b[module.layer])
