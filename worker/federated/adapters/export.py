"""From TriLoRA to plain LoRA without loss: B' = B (I + T), A' = A."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from peft import LoraConfig, PeftConfig, PeftModel
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import save_file
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from worker.federated.adapters.config import TriLoraConfig
from worker.federated.adapters.layer import TriLoraLinear
from worker.federated.errors import InvalidConfigError, NonFiniteError
from worker.federated.roles import target_suffixes


def export_lora(model: PeftModel, folder: Path, adapter_name: str = "default") -> Path:
    """Writes an adapter as a folder that stock PEFT (and any LoRA server) loads.

    Args:
        model: a model with a TriLoRA adapter. The rank of the result is r, or R for `mask`.
        folder: created if missing; gets `adapter_config.json` and `adapter_model.safetensors`.
        adapter_name: which adapter.

    Returns:
        The folder.

    Raises:
        InvalidConfigError: the adapter is not a TriLoRA adapter.
    """
    config = model.peft_config.get(adapter_name)
    if not isinstance(config, TriLoraConfig):
        raise InvalidConfigError(
            f"Adapter {adapter_name!r} is {type(config).__name__}: export_lora takes a TriLoRA "
            "adapter; save any other with model.save_pretrained(folder)."
        )
    base = cast(PreTrainedModel, model.get_base_model())
    tensors: dict[str, torch.Tensor] = {}
    layers = {
        name: module
        for name, module in base.named_modules()
        if isinstance(module, TriLoraLinear) and adapter_name in module.trilora_A
    }
    for name, layer in layers.items():
        factor_a, factor_b = layer.lora_pair(adapter_name)
        tensors[f"base_model.model.{name}.lora_A.weight"] = factor_a
        tensors[f"base_model.model.{name}.lora_B.weight"] = factor_b
    seat = next(iter(layers.values())).trilora_seat[adapter_name]
    rank = seat.stack.geometry.factor_rank
    alpha = config.lora_alpha * rank / config.r
    first = next(iter(layers.values())).get_base_layer()
    exported = LoraConfig(
        r=rank,
        lora_alpha=cast(int, int(alpha) if float(alpha).is_integer() else alpha),
        lora_dropout=config.lora_dropout,
        target_modules=target_suffixes(
            base, [layer.trilora_seat[adapter_name].module for layer in layers.values()]
        ),
        fan_in_fan_out=isinstance(first, Conv1D),
        bias="none",
        task_type=config.task_type,
        base_model_name_or_path=config.base_model_name_or_path,
        inference_mode=True,
    )
    return write_lora(folder, exported, tensors)


def write_lora(folder: Path, config: LoraConfig, tensors: Mapping[str, torch.Tensor]) -> Path:
    """Writes a plain LoRA adapter, `base_model.model.<module>.lora_A.weight` and `lora_B.weight`.

    Raises as `write_adapter` does: `NonFiniteError`.
    """
    return write_adapter(folder, config, tensors)


def write_adapter(folder: Path, config: PeftConfig, tensors: Mapping[str, torch.Tensor]) -> Path:
    """Writes an adapter in PEFT's format: configuration and tensors, nothing else.

    A base model that was loaded from a folder is recorded by the folder's last name only, since
    the path means nothing on another machine.

    Args:
        folder: created if missing.
        config: of the adapter.
        tensors: by the names of `get_peft_model_state_dict`.

    Returns:
        The folder.

    Raises:
        NonFiniteError: a tensor holds NaN or infinity; nothing is written.
    """
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise NonFiniteError(
                f"'{name}' holds NaN or infinity, so the adapter was not written: train again "
                "from an earlier round with a lower learning rate."
            )
    base = config.base_model_name_or_path
    if base is not None and Path(base).is_absolute():
        config.base_model_name_or_path = Path(base).name
    own: Any = config  # not every method's configuration has target modules
    if isinstance(getattr(own, "target_modules", None), set):
        own.target_modules = sorted(own.target_modules)  # a set has no order of its own
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(str(folder))
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(contiguous, folder / SAFETENSORS_WEIGHTS_NAME, metadata={"format": "pt"})
    return folder
