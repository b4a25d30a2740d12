"""FedAdapter on one block: h <- h + U phi(sum_b g_b F_b D dropout(h)).

| Symbol | Shape | |
|---|---|---|
| D, U | (kappa, d), (d, kappa) | private, d is the model's hidden size; U starts at zero |
| F_b | (kappa, kappa) | shared; starts near the identity |
| g_b | scalar, or softmax_b(G D h) per token | private; starts uniform; G is (branches, kappa) |
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from torch.nn import functional

from worker.federated.adapters.fedadapter_config import Activation, FedAdapterConfig, Gating
from worker.federated.blocks import Block
from worker.federated.errors import UnsupportedModelError
from worker.federated.seeds import generator

BRANCH_NOISE = 0.02
"""Standard deviation of what tells branches apart at the start; without it they would stay equal
under equal gates."""

_ACTIVATIONS: dict[Activation, Callable[[torch.Tensor], torch.Tensor]] = {
    "relu": functional.relu,
    "gelu": functional.gelu,
    "silu": functional.silu,
    "identity": lambda hidden: hidden,
}


def start_branches(seed: int, slot: int, num_branches: int, bottleneck: int) -> torch.Tensor:
    """First branches of one slot, I plus small noise, (num_branches, kappa, kappa) fp32.

    The first branches are the same however many there are, so small and large clients agree.
    """
    eye = torch.eye(bottleneck)
    return torch.stack(
        [
            eye + BRANCH_NOISE * torch.randn(eye.shape, generator=generator(seed, "F", slot, b))
            for b in range(num_branches)
        ]
    )


class FedAdapterBlock(nn.Module, BaseTunerLayer):
    """A block of a model with any number of named adapters after it, all in fp32.

    The block's output is a tensor, or a tuple whose first entry is adapted. Whatever else one asks
    of it, the wrapped block answers, since models look into their layers. (A model that is asked
    for all hidden states reports those of the wrapped blocks, before the adapters.)
    """

    adapter_layer_names = ("fedadapter_D", "fedadapter_U", "fedadapter_F", "fedadapter_G")
    other_param_names = ("fedadapter_dropout", "fedadapter_gating", "fedadapter_activation")

    def __init__(
        self, base_layer: nn.Module, adapter_name: str, block: Block, config: FedAdapterConfig
    ) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.block = block
        self.fedadapter_D = nn.ParameterDict()
        self.fedadapter_U = nn.ParameterDict()
        self.fedadapter_F = nn.ParameterDict()
        self.fedadapter_G = nn.ParameterDict()
        self.fedadapter_dropout = nn.ModuleDict()
        self.fedadapter_gating: dict[str, Gating] = {}
        self.fedadapter_activation: dict[str, Activation] = {}
        self._disable_adapters = False
        self.merged_adapters: list[str] = []
        self._active_adapter = adapter_name
        self.add_adapter(adapter_name, config)

    def __getattr__(self, name: str) -> Any:
        """What this module does not have itself, the wrapped block may have."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "base_layer":
                raise
            return getattr(self.base_layer, name)

    def add_adapter(self, adapter_name: str, config: FedAdapterConfig) -> None:
        """Creates one adapter's parameters; until they are trained the block computes the same."""
        width, bottleneck, branches = self.block.width, config.bottleneck, config.num_branches
        device = next(self.base_layer.parameters()).device
        source = generator(config.seed, "D", self.block.name)
        down = torch.empty(bottleneck, width)
        down.uniform_(-1 / math.sqrt(width), 1 / math.sqrt(width), generator=source)
        up = torch.zeros(width, bottleneck)
        shared = start_branches(config.shared_seed, self.block.layer, branches, bottleneck)
        gate = (
            torch.full((branches,), 1 / branches)
            if config.gating == "scalars"
            else torch.zeros(branches, bottleneck)
        )
        self.fedadapter_gating[adapter_name] = config.gating
        self.fedadapter_activation[adapter_name] = config.activation
        self.fedadapter_dropout[adapter_name] = nn.Dropout(config.dropout)
        self.fedadapter_D[adapter_name] = nn.Parameter(down.to(device))
        self.fedadapter_U[adapter_name] = nn.Parameter(up.to(device))
        self.fedadapter_F[adapter_name] = nn.Parameter(shared.to(device))
        self.fedadapter_G[adapter_name] = nn.Parameter(gate.to(device))
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The block's own output with the adapted hidden states, (..., d) in the block's dtype."""
        result = self.base_layer(*args, **kwargs)
        if self.disable_adapters:
            return result
        if isinstance(result, tuple):
            return (self._adapted(result[0]), *result[1:])
        return self._adapted(result)

    def _adapted(self, hidden: torch.Tensor) -> torch.Tensor:
        total = hidden
        for name in self.active_adapters:
            if name in self.fedadapter_D:
                total = total + self.update(name, hidden).to(hidden.dtype)
        return total

    def update(self, adapter_name: str, hidden: torch.Tensor) -> torch.Tensor:
        """U phi(sum_b g_b F_b D dropout(h)), (..., d) -> (..., d) fp32."""
        down, branches = self.fedadapter_D[adapter_name], self.fedadapter_F[adapter_name]
        gate = self.fedadapter_G[adapter_name]
        dropped = self.fedadapter_dropout[adapter_name](hidden.to(down.dtype))
        narrow = functional.linear(dropped, down)
        if self.fedadapter_gating[adapter_name] == "scalars":
            mixed = functional.linear(narrow, torch.einsum("b,bij->ij", gate, branches))
        else:
            weights = functional.linear(narrow, gate).softmax(dim=-1)
            mixed = torch.einsum("...b,bij,...j->...i", weights, branches, narrow)
        active = _ACTIVATIONS[self.fedadapter_activation[adapter_name]](mixed)
        return functional.linear(active, self.fedadapter_U[adapter_name])

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Refuses, with `UnsupportedModelError`: no weight of the block can take the update."""
        raise UnsupportedModelError(
            "A FedAdapter cannot be merged: it acts on a block's whole output, which no linear "
            "layer inside makes alone. Keep the adapter apart, or train a LoRA strategy."
        )

    def unmerge(self) -> None:
        """Nothing is ever merged, so nothing happens."""

    def _move_adapter_to_device_of_base_layer(
        self, adapter_name: str, device: torch.device | None = None
    ) -> None:
        """Moves one adapter without PEFT's cast: it stays fp32 on a half-precision model."""
        target = device or next(self.base_layer.parameters()).device
        for name in self.adapter_layer_names:
            parameters = getattr(self, name)
            if adapter_name in parameters and parameters[adapter_name].device.type != "meta":
                parameters[adapter_name] = parameters[adapter_name].to(target)

    def __repr__(self) -> str:
        return f"fedadapter.{super().__repr__()}"
