"""TriLoRA as a PEFT tuner: puts adapter layers into a model and owns what they have in common."""

from typing import Any, cast

from peft.config import PeftConfig
from peft.tuners.tuners_utils import BaseTuner
from torch import nn
from transformers import PreTrainedModel

from worker.federated.adapters.config import TriLoraConfig
from worker.federated.adapters.geometry import make_geometry
from worker.federated.adapters.layer import Seat, TriLoraLinear
from worker.federated.adapters.stack import MiddleStack
from worker.federated.alignment import start_alignment
from worker.federated.errors import InvalidConfigError, UnsupportedModelError
from worker.federated.roles import AdaptedModule, adapted_modules, target_suffixes
from worker.federated.seeds import generator


class TriLoraModel(BaseTuner):
    """Adapts every linear layer that `worker.federated.roles` names, or those that match.

    `trilora_stacks` holds one `MiddleStack` per adapter; PEFT saves and loads it with the rest.
    """

    prefix = "trilora_"
    tuner_layer_cls = TriLoraLinear
    target_module_mapping: dict[str, list[str]] = {}  # noqa: RUF012 - declared so by BaseTuner
    uses_shared_state = True

    def _prepare_adapter_config(
        self, peft_config: PeftConfig, model_config: dict[str, Any]
    ) -> PeftConfig:
        """Nothing to do here: the names come from the model, see `_prepare_model`."""
        return peft_config

    def _prepare_model(self, peft_config: PeftConfig, model: nn.Module) -> None:
        """Fills in the target modules, and creates the stack that the new layers will share."""
        config, body = _own(peft_config), cast(PreTrainedModel, model)
        modules = adapted_modules(body)
        if config.target_modules is None:
            config.target_modules = set(target_suffixes(body, modules))
        chosen = [m for m in modules if self._check_target_module_exists(config, m.name)]
        adapter_name = next(n for n, c in self.peft_config.items() if c is config)
        num_layers = 1 + max(module.layer for module in modules)
        start = generator(config.seed, "alignment")
        alignment = start_alignment(
            config.alignment_start,
            config.alignment_constraint,
            config.num_slots or num_layers,
            num_layers,
            start,
        )
        geometry = make_geometry(
            config.layout,
            config.r,
            config.global_rank or config.r,
            config.sparsity,
        )
        stack = MiddleStack(
            geometry,
            list(dict.fromkeys(module.role for module in chosen)),
            alignment,
            sharing=config.alignment_sharing,
            generator=generator(config.shared_seed, "scores"),
        ).to(next(model.parameters()).device)
        if "trilora_stacks" not in self._modules:
            self.trilora_stacks = nn.ModuleDict()
        self.trilora_stacks[adapter_name] = stack
        self._places: dict[str, AdaptedModule] = {module.name: module for module in chosen}

    def _create_and_replace(
        self,
        peft_config: PeftConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        config = _own(peft_config)
        place = self._places.get(current_key)
        if place is None:
            raise UnsupportedModelError(
                f"target_modules of TriLoraConfig match '{current_key}', which has no role: leave "
                "target_modules empty, or name only modules of worker/federated/roles.py."
            )
        seat = Seat(
            stack=cast(MiddleStack, self.trilora_stacks[adapter_name]),
            module=place,
            scaling=config.lora_alpha / config.r,
            identity=config.identity,
        )
        if isinstance(target, TriLoraLinear):
            target.add_adapter(adapter_name, seat, config)
            return
        layer = TriLoraLinear(target, adapter_name, seat, config)
        if adapter_name not in self.active_adapters:
            layer.requires_grad_(False)
        self._replace_module(parent, target_name, layer, target)

    def set_adapter(self, adapter_name: str | list[str], inference_mode: bool = False) -> None:
        """Chooses the active adapters; their stacks become trainable with their layers."""
        super().set_adapter(adapter_name, inference_mode)
        active = [adapter_name] if isinstance(adapter_name, str) else adapter_name
        for name, stack in self.trilora_stacks.items():
            stack.requires_grad_(name in active and not inference_mode)

    def delete_adapter(self, adapter_name: str) -> None:
        """Removes an adapter from every layer, and its stack."""
        super().delete_adapter(adapter_name)
        del self.trilora_stacks[adapter_name]


def _own(config: PeftConfig) -> TriLoraConfig:
    if not isinstance(config, TriLoraConfig):
        raise InvalidConfigError(
            f"TriLoRA was given a {type(config).__name__}: pass a TriLoraConfig instead."
        )
    return config
