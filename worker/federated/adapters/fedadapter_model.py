"""FedAdapter as a PEFT tuner: wraps the blocks of a model."""

from typing import Any, cast

from peft.config import PeftConfig
from peft.tuners.tuners_utils import BaseTuner
from torch import nn
from transformers import PreTrainedModel

from worker.federated.adapters.fedadapter_config import FedAdapterConfig
from worker.federated.adapters.fedadapter_layer import FedAdapterBlock
from worker.federated.blocks import Block, blocks_of
from worker.federated.errors import InvalidConfigError, UnsupportedModelError


class FedAdapterModel(BaseTuner):
    """Adapts every block of a model, or those that match `target_modules`."""

    prefix = "fedadapter_"
    tuner_layer_cls = FedAdapterBlock
    target_module_mapping: dict[str, list[str]] = {}  # noqa: RUF012 - declared so by BaseTuner

    def _prepare_adapter_config(
        self, peft_config: PeftConfig, model_config: dict[str, Any]
    ) -> PeftConfig:
        """Nothing to do here: the names come from the model, see `_prepare_model`."""
        return peft_config

    def _prepare_model(self, peft_config: PeftConfig, model: nn.Module) -> None:
        """Finds the blocks, and targets all of them where nothing else is said."""
        config = _own(peft_config)
        blocks = blocks_of(cast(PreTrainedModel, model))
        if config.target_modules is None:
            config.target_modules = {block.name for block in blocks}
        self._blocks: dict[str, Block] = {block.name: block for block in blocks}

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
        block = self._blocks.get(current_key)
        if block is None:
            raise UnsupportedModelError(
                f"target_modules of FedAdapterConfig match '{current_key}', which is no block: "
                f"leave target_modules empty, or name blocks such as '{next(iter(self._blocks))}'."
            )
        if isinstance(target, FedAdapterBlock):
            target.add_adapter(adapter_name, config)
            return
        layer = FedAdapterBlock(target, adapter_name, block, config)
        if adapter_name not in self.active_adapters:
            layer.requires_grad_(False)
        self._replace_module(parent, target_name, layer, target)

    def _replace_module(
        self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module
    ) -> None:
        """Puts an adapter around a block, or the bare block back.

        PEFT's own version hands the `weight` of a linear layer over, which a block does not have.
        """
        setattr(parent, child_name, new_module)


def _own(config: PeftConfig) -> FedAdapterConfig:
    if not isinstance(config, FedAdapterConfig):
        raise InvalidConfigError(
            f"FedAdapter was given a {type(config).__name__}: pass a FedAdapterConfig instead."
        )
    for name in ("bottleneck", "num_branches"):
        if getattr(config, name) < 1:
            raise InvalidConfigError(
                f"{name} of FedAdapterConfig is {getattr(config, name)}: it must be at least 1."
            )
    return config
