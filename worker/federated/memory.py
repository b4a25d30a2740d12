"""What fits into the memory of a device: less of it on purpose, and clear words when it is full."""

import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from transformers import PreTrainedModel

from backend.contracts.training import TrainingConfig
from worker.federated.errors import OutOfMemoryError, UnsupportedModelError

CHECKPOINTED_FROM = 500_000_000
"""Weights from which on `auto` recomputes activations: smaller models fit as they are."""

SHORTEST = 128
"""Tokens below which a shorter `max_length` is no longer worth suggesting."""


@contextmanager
def explained_memory(config: TrainingConfig) -> Iterator[None]:
    """Turns a full device into settings that need less, with the same number of examples a step.

    Raises:
        OutOfMemoryError: something within the block asked for more memory than there is.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise OutOfMemoryError(
            "The device has not enough memory for this training. Try, one after the other: "
            f"{'; '.join(smaller_settings(config))}."
        ) from error


def smaller_settings(config: TrainingConfig) -> list[str]:
    """Changes that save memory, the one that costs least first; never empty."""
    advice = []
    if config.batch_size > 1:
        smaller = (config.batch_size + 1) // 2
        accumulation = config.gradient_accumulation_steps * 2
        advice.append(
            f"batch_size {smaller} with gradient_accumulation_steps {accumulation} (now "
            f"{config.batch_size} with {config.gradient_accumulation_steps})"
        )
    if config.gradient_checkpointing != "on":
        advice.append(f"gradient_checkpointing 'on' (now {config.gradient_checkpointing!r})")
    if config.max_length > SHORTEST:
        shorter = max(SHORTEST, config.max_length // 2)
        advice.append(f"max_length {shorter} (now {config.max_length})")
    if config.quantization == "none":
        advice.append("quantization 'nf4' (now 'none')")
    return [*advice, "a smaller base model"]


@contextmanager
def recomputed_activations(model: PreTrainedModel, config: TrainingConfig) -> Iterator[None]:
    """Lets training keep one activation per layer instead of all, where `config` asks for it.

    The gradients are the same: each layer runs again in the backward pass, with the same dropout.
    The non-reentrant kind is used because it also works when nothing before the first adapter
    requires a gradient, as with a frozen base model. Evaluation is not affected.

    Raises:
        UnsupportedModelError: `on` is asked for a model that cannot do it.
    """
    if not _recomputes(model, config):
        yield
        return
    if not model.supports_gradient_checkpointing:
        if config.gradient_checkpointing == "auto":
            yield
            return
        raise UnsupportedModelError(
            f"{type(model).__name__} cannot recompute its activations: set gradient_checkpointing "
            "to 'off' (now 'on')."
        )
    # transformers 5 renamed both; a method it lacks is one of an older version.
    current = hasattr(model, "activation_checkpointing_enable")
    kind = "activation" if current else "gradient"
    options = {f"{kind}_checkpointing_kwargs": {"use_reentrant": False}}
    getattr(model, f"{kind}_checkpointing_enable")(**options)
    try:
        yield
    finally:
        getattr(model, f"{kind}_checkpointing_disable")()


def _recomputes(model: PreTrainedModel, config: TrainingConfig) -> bool:
    if config.gradient_checkpointing == "auto":
        return model.device.type == "cuda" and model.num_parameters() >= CHECKPOINTED_FROM
    return config.gradient_checkpointing == "on"


def peak_memory_bytes(device: torch.device) -> int:
    """Highest memory in use so far: of the GPU, or of this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
