"""TriLoRA on one linear layer: y = W x + s B (I + T) A dropout(x), s = lora_alpha / r."""

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from torch import nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from worker.federated.adapters.config import TriLoraConfig
from worker.federated.adapters.stack import MiddleStack
from worker.federated.errors import NonFiniteError, UnsupportedModelError
from worker.federated.roles import AdaptedModule
from worker.federated.seeds import generator


@dataclass(frozen=True, slots=True)
class Seat:
    """Where a layer sits in its model, and the stack that serves it. Not part of its state."""

    stack: MiddleStack
    module: AdaptedModule
    scaling: float
    identity: bool


class TriLoraLinear(nn.Module, BaseTunerLayer):
    """A linear layer (`nn.Linear`, or GPT-2's `Conv1D`) with any number of named adapters.

    Per adapter: A (factor_rank, in_features), B (out_features, factor_rank) and the change
    D (R, R) of its middle matrix, all fp32 whatever the base model's dtype.
    """

    adapter_layer_names = ("trilora_A", "trilora_B", "trilora_D")
    other_param_names = ("trilora_dropout", "trilora_seat")

    def __init__(
        self, base_layer: nn.Module, adapter_name: str, seat: Seat, config: TriLoraConfig
    ) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.trilora_A = nn.ParameterDict()
        self.trilora_B = nn.ParameterDict()
        self.trilora_D = nn.ParameterDict()
        self.trilora_dropout = nn.ModuleDict()
        self.trilora_seat: dict[str, Seat] = {}
        self.trilora_folded: dict[str, torch.Tensor] = {}  # B (I + T), filled by `folded` only
        self._disable_adapters = False
        self.merged_adapters: list[str] = []
        self._active_adapter = adapter_name
        self.add_adapter(adapter_name, seat, config)

    def add_adapter(self, adapter_name: str, seat: Seat, config: TriLoraConfig) -> None:
        """Creates the parameters of one adapter; the model computes the same until it is trained.

        With the identity, B starts at zero. Without it, T starts at zero and B is random.
        """
        module, geometry = seat.module, seat.stack.geometry
        rank, device = geometry.factor_rank, self.base_weight().device
        change = torch.zeros(geometry.global_rank, geometry.global_rank, device=device)
        out_factor = torch.zeros(module.out_features, rank)
        if not config.identity:
            source = generator(config.seed, "B", module.name)
            out_factor.uniform_(-1 / math.sqrt(rank), 1 / math.sqrt(rank), generator=source)
        self.trilora_seat[adapter_name] = seat
        self.trilora_dropout[adapter_name] = nn.Dropout(config.lora_dropout)
        self.trilora_A[adapter_name] = nn.Parameter(start_in_factor(seat, config).to(device))
        self.trilora_B[adapter_name] = nn.Parameter(out_factor.to(device))
        self.trilora_D[adapter_name] = nn.Parameter(change)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def base_weight(self) -> nn.Parameter:
        """W as the base layer stores it."""
        return self.get_base_layer().get_parameter("weight")

    def core(self, adapter_name: str) -> torch.Tensor:
        """I + T (or T, without the identity), (factor_rank, factor_rank), in the graph."""
        seat = self.trilora_seat[adapter_name]
        module = seat.module
        middle = seat.stack.middle(module.role, module.layer, self.trilora_D[adapter_name])
        if not seat.identity:
            return middle
        return middle + torch.eye(middle.shape[0], dtype=middle.dtype, device=middle.device)

    @torch.no_grad()
    def lora_pair(self, adapter_name: str) -> tuple[torch.Tensor, torch.Tensor]:
        """The plain LoRA factors with the same effect: A' = A and B' = B (I + T), fp32."""
        factor_b = self.trilora_B[adapter_name] @ self.core(adapter_name)
        return self.trilora_A[adapter_name].detach().clone(), factor_b

    def get_delta_weight(self, adapter_name: str) -> torch.Tensor:
        """The update s B (I + T) A in the orientation of the base weight, fp32."""
        factor_a, factor_b = self.lora_pair(adapter_name)
        delta = self.trilora_seat[adapter_name].scaling * (factor_b @ factor_a)
        return delta.T if isinstance(self.get_base_layer(), Conv1D) else delta

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Adds the active adapters to the base weight.

        Raises:
            NonFiniteError: `safe_merge` is set and the merged weight is not finite.
            UnsupportedModelError: the base weight is quantised.
        """
        if not self.base_weight().is_floating_point():
            raise UnsupportedModelError(
                "An adapter cannot be merged into quantised weights without losing most of it: "
                "load the base model with quantization 'none', or keep the adapter apart."
            )
        for name in check_adapters_to_merge(self, adapter_names):
            if name not in self.trilora_A:
                continue
            weight = self.base_weight()
            merged = weight.data + self.get_delta_weight(name).to(weight.dtype)
            if safe_merge and not torch.isfinite(merged).all():
                raise NonFiniteError(
                    f"Merging adapter {name!r} into {self.trilora_seat[name].module.name} gives "
                    "NaN or infinity: the adapter is broken, load an earlier one."
                )
            weight.data = merged
            self.merged_adapters.append(name)

    def unmerge(self) -> None:
        """Takes all merged adapters out of the base weight again (exact up to rounding)."""
        if not self.merged:
            warnings.warn("Nothing to unmerge: no adapter is merged.", stacklevel=2)
        while self.merged_adapters:
            name = self.merged_adapters.pop()
            weight = self.base_weight()
            weight.data = weight.data - self.get_delta_weight(name).to(weight.dtype)

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """(..., in_features) -> (..., out_features), in the dtype of the base layer."""
        if self.disable_adapters and self.merged:
            self.unmerge()
        result: torch.Tensor = self.base_layer(x, *args, **kwargs)
        if self.disable_adapters or self.merged:
            return result
        dtype = result.dtype
        for name in self.active_adapters:
            if name not in self.trilora_A:
                continue
            factor_a, factor_b = self.trilora_A[name], self.trilora_B[name]
            hidden = self.trilora_dropout[name](x.to(factor_a.dtype))
            hidden = functional.linear(hidden, factor_a)
            if name in self.trilora_folded:
                update = functional.linear(hidden, self.trilora_folded[name])
            else:
                hidden = functional.linear(hidden, self.core(name))
                update = functional.linear(hidden, factor_b)
            result = result + self.trilora_seat[name].scaling * update
        return result.to(dtype)

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        """True: `export_lora` even does it without any loss."""
        return True

    def _move_adapter_to_device_of_base_layer(
        self, adapter_name: str, device: torch.device | None = None
    ) -> None:
        """Moves one adapter without PEFT's cast: factors stay fp32 on a half-precision model."""
        target = device or self.base_weight().device
        for parameters in (self.trilora_A, self.trilora_B, self.trilora_D):
            if adapter_name in parameters and parameters[adapter_name].device.type != "meta":
                parameters[adapter_name] = parameters[adapter_name].to(target)

    def __repr__(self) -> str:
        return f"trilora.{super().__repr__()}"


@contextmanager
def folded(model: nn.Module) -> Iterator[None]:
    """Lets a model evaluate at the speed of plain LoRA: B (I + T) is multiplied out once.

    For as long as the block lasts, nothing may be trained. Models without TriLoRA are left alone.
    """
    layers = [layer for layer in model.modules() if isinstance(layer, TriLoraLinear)]
    for layer in layers:
        layer.trilora_folded = {name: layer.lora_pair(name)[1] for name in layer.trilora_A}
    try:
        yield
    finally:
        for layer in layers:
            layer.trilora_folded = {}


def start_in_factor(seat: Seat, config: TriLoraConfig) -> torch.Tensor:
    """First A of one layer, (factor_rank, in_features) fp32, as `config.factor_start` says.

    `random` is LoRA's own start, uniform in +-1/sqrt(in_features). `shared_seed` draws R rows from
    a seed of the role and takes those of the held indices, so that index c means the same
    direction in every layer of every model of that width. `orthonormal` has orthonormal rows.
    """
    module, geometry = seat.module, seat.stack.geometry
    rank, width = geometry.factor_rank, module.in_features
    bound = 1 / math.sqrt(width)
    if config.factor_start == "shared_seed":
        source = generator(config.shared_seed, "A", module.role)
        rows = torch.empty(geometry.global_rank, width).uniform_(-bound, bound, generator=source)
        if geometry.layout != "block":
            return rows[:rank].clone()
        held = seat.stack.selected(module.role).cpu()
        others = [index for index in range(len(rows)) if index not in set(held.tolist())]
        return rows[torch.cat([held, torch.tensor(others, dtype=held.dtype)])[:rank]]
    source = generator(config.seed, "A", module.name)
    if config.factor_start == "orthonormal":
        factor = torch.empty(rank, width)
        nn.init.orthogonal_(factor, generator=source)
        return factor
    return torch.empty(rank, width).uniform_(-bound, bound, generator=source)
