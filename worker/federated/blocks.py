"""The blocks of a base model: its layers as wholes, and where they lie in the common depth."""

from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedModel

from worker.federated.errors import UnsupportedModelError
from worker.federated.roles import family_of


@dataclass(frozen=True, slots=True)
class Block:
    """One layer of a model, such as a `LlamaDecoderLayer`: hidden states in, hidden states out."""

    layer: int  # position in the model's depth, from 0
    name: str  # full path, as in `model.named_modules()`
    width: int  # hidden size


def blocks_of(model: PreTrainedModel) -> list[Block]:
    """Every block of a base model, by depth.

    Raises:
        UnsupportedModelError: the family is unknown, or has no list of layers where its row in
            `worker.federated.roles` says.
    """
    family, body = family_of(model.config.model_type), model.base_model
    prefix = "" if body is model else f"{model.base_model_prefix}."
    layers = dict(body.named_modules()).get(family.layers)
    if not isinstance(layers, nn.ModuleList) or len(layers) == 0:
        raise UnsupportedModelError(
            f"{type(model).__name__} has no list of layers at '{prefix}{family.layers}': correct "
            "`layers` of its row in FAMILIES in worker/federated/roles.py."
        )
    return [
        Block(number, f"{prefix}{family.layers}.{number}", model.config.hidden_size)
        for number in range(len(layers))
    ]


def slot_of(layer: int, num_layers: int, num_slots: int) -> int:
    """The slot of the common stack at a layer's relative depth; different layers, different slots.

    First layer to first slot, last to last, the others to the nearest in between; the only layer
    of a model goes to the middle.

    Args:
        layer: from 0.
        num_layers: of the model, at most `num_slots`.
        num_slots: L*.
    """
    if num_layers == 1:
        return (num_slots - 1) // 2
    steps = num_layers - 1
    return (2 * layer * (num_slots - 1) + steps) // (2 * steps)  # rounds halves up


def block_ends(num_layers: int, num_blocks: int) -> list[int]:
    """The last layers of equal stretches of a model's depth, ascending.

    Args:
        num_layers: of the model.
        num_blocks: stretches, in [1, num_layers].
    """
    return [-(-(number * num_layers) // num_blocks) - 1 for number in range(1, num_blocks + 1)]
