"""Which linear layers of a base model are adapted, and what each one is for.

Models name the same thing differently: the query projection is `q_proj` in Llama, `query` in BERT
and `q_lin` in DistilBERT. A *role* (`q`, `k`, `v`, `o`, `gate`, `up`, `down`, and `qkv`,
`gate_up` where a family fuses them) is the common name; the middle matrices of different families
meet under it. The table below is the only place that knows module names.

To add a family, add one row: its `model_type`, where its list of layers lies, and for each role
the path within one layer.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from backend.contracts.base_models import Architecture
from worker.federated.errors import UnsupportedModelError
from worker.federated.types import ModuleShape


@dataclass(frozen=True, slots=True)
class Family:
    """Where one `model_type` of transformers keeps its linear layers.

    `layers` is the path of the list of layers below `model.base_model` (the body without a head),
    `roles` maps each role to a path within one layer. `reads` says what a model takes in, and
    `writes` whether it can write an answer; one that cannot needs a classification head.
    """

    layers: str
    roles: Mapping[str, str]
    reads: Literal["text", "image"] = "text"
    writes: bool = True


@dataclass(frozen=True, slots=True)
class AdaptedModule:
    """One linear layer y = W x + b that receives an adapter."""

    layer: int  # position in the model's depth, from 0
    role: str
    name: str  # full path, as in `model.named_modules()`
    in_features: int
    out_features: int


_SELF_ATTENTION = {
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
}
_GATED_DECODER = Family(
    layers="layers",
    roles={
        **_SELF_ATTENTION,
        "o": "self_attn.o_proj",
        "gate": "mlp.gate_proj",
        "up": "mlp.up_proj",
        "down": "mlp.down_proj",
    },
)
_BERT_ENCODER = Family(
    layers="encoder.layer",
    roles={
        "q": "attention.self.query",
        "k": "attention.self.key",
        "v": "attention.self.value",
        "o": "attention.output.dense",
        "up": "intermediate.dense",
        "down": "output.dense",
    },
    writes=False,
)
_IMAGE_ENCODER = Family(
    layers="layers",
    roles={
        "q": "attention.q_proj",
        "k": "attention.k_proj",
        "v": "attention.v_proj",
        "o": "attention.o_proj",
        "up": "mlp.fc1",
        "down": "mlp.fc2",
    },
    reads="image",
    writes=False,
)

FAMILIES: Mapping[str, Family] = {
    "llama": _GATED_DECODER,
    "mistral": _GATED_DECODER,
    "qwen2": _GATED_DECODER,
    "qwen3": _GATED_DECODER,
    "gemma": _GATED_DECODER,
    "gemma2": _GATED_DECODER,
    "gemma3_text": _GATED_DECODER,
    "phi3": Family(
        layers="layers",
        roles={
            "qkv": "self_attn.qkv_proj",
            "o": "self_attn.o_proj",
            "gate_up": "mlp.gate_up_proj",
            "down": "mlp.down_proj",
        },
    ),
    "gpt2": Family(
        layers="h",
        roles={
            "qkv": "attn.c_attn",
            "o": "attn.c_proj",
            "up": "mlp.c_fc",
            "down": "mlp.c_proj",
        },
    ),
    "gpt_neox": Family(
        layers="layers",
        roles={
            "qkv": "attention.query_key_value",
            "o": "attention.dense",
            "up": "mlp.dense_h_to_4h",
            "down": "mlp.dense_4h_to_h",
        },
    ),
    "opt": Family(
        layers="decoder.layers",
        roles={**_SELF_ATTENTION, "o": "self_attn.out_proj", "up": "fc1", "down": "fc2"},
    ),
    "bert": _BERT_ENCODER,
    "roberta": _BERT_ENCODER,
    "distilbert": Family(
        layers="transformer.layer",
        roles={
            "q": "attention.q_lin",
            "k": "attention.k_lin",
            "v": "attention.v_lin",
            "o": "attention.out_lin",
            "up": "ffn.lin1",
            "down": "ffn.lin2",
        },
        writes=False,
    ),
    "vit": _IMAGE_ENCODER,
    "deit": _IMAGE_ENCODER,
}


def family_of(model_type: str) -> Family:
    """The row of the table for a `model_type` of transformers.

    Raises:
        UnsupportedModelError: the table has no such row; the message shows how to add one.
    """
    family = FAMILIES.get(model_type)
    if family is None:
        raise UnsupportedModelError(
            f"Base models of family {model_type!r} are not supported yet; known families: "
            f"{', '.join(sorted(FAMILIES))}. To add it, put one row into FAMILIES in "
            f'worker/federated/roles.py, such as "{model_type}": Family(layers="layers", '
            'roles={"q": "self_attn.q_proj", "v": "self_attn.v_proj"}), with the paths that '
            "model.named_modules() prints."
        )
    return family


def linear_shape(module: nn.Module) -> ModuleShape | None:
    """Shape of a linear layer (or of the one an adapter wraps), or None for any other module."""
    if isinstance(module, BaseTunerLayer):
        module = module.get_base_layer()
    if isinstance(module, nn.Linear):
        return ModuleShape(in_features=module.in_features, out_features=module.out_features)
    if isinstance(module, Conv1D):  # GPT-2 stores W transposed: (in_features, out_features)
        in_features, out_features = module.weight.shape
        return ModuleShape(in_features=in_features, out_features=out_features)
    return None


def adapted_modules(model: PreTrainedModel) -> list[AdaptedModule]:
    """Every linear layer of a base model that receives an adapter, by layer, then by role.

    Works with any head or none, on the meta device, and on a model that already carries adapters.

    Raises:
        UnsupportedModelError: the family is unknown, or a module of its row is missing or is not
            a linear layer.
    """
    model_type = model.config.model_type
    family = family_of(model_type)
    body = model.base_model
    prefix = "" if body is model else f"{model.base_model_prefix}."
    modules = dict(body.named_modules())
    layers = modules.get(family.layers)
    if not isinstance(layers, nn.ModuleList) or len(layers) == 0:
        raise UnsupportedModelError(
            f"{type(model).__name__} ({model_type}) has no list of layers at "
            f"'{prefix}{family.layers}': correct `layers` of its row in FAMILIES."
        )
    found = []
    for layer in range(len(layers)):
        for role, path in family.roles.items():
            name = f"{family.layers}.{layer}.{path}"
            module = modules.get(name)
            shape = None if module is None else linear_shape(module)
            if shape is None:
                actual = "nothing" if module is None else type(module).__name__
                raise UnsupportedModelError(
                    f"{type(model).__name__} ({model_type}) has {actual} at '{prefix}{name}' "
                    f"where its row in FAMILIES expects the linear layer of role {role!r}: "
                    "correct the row, or load the model without that variant."
                )
            found.append(
                AdaptedModule(layer, role, f"{prefix}{name}", shape.in_features, shape.out_features)
            )
    return found


def module_shapes(model: PreTrainedModel) -> dict[str, ModuleShape]:
    """Shape of each role's linear layers, in the order of the family's row.

    Raises:
        UnsupportedModelError: the family is unknown, or a role's shape differs between layers.
    """
    shapes: dict[str, ModuleShape] = {}
    for module in adapted_modules(model):
        shape = ModuleShape(module.in_features, module.out_features)
        if shapes.setdefault(module.role, shape) != shape:
            raise UnsupportedModelError(
                f"Role {module.role!r} has shape {shapes[module.role]} in the first layers but "
                f"{shape} at '{module.name}': only models whose layers are all alike are supported."
            )
    return shapes


def architecture_of(model: PreTrainedModel) -> Architecture:
    """Family, depth and width of a base model, as its configuration states them."""
    return Architecture(
        family=model.config.model_type,
        num_layers=model.config.num_hidden_layers,
        hidden_size=model.config.hidden_size,
    )


def target_suffixes(model: PreTrainedModel, modules: Iterable[AdaptedModule]) -> list[str]:
    """Shortest endings of module names that match exactly the given modules.

    PEFT and serving engines select modules by the end of their names: `q_proj` says it for Llama,
    while BERT's `dense` would also match the pooler, so there `output.dense` is needed.
    """
    wanted = {module.name for module in modules}
    every = [name for name, module in model.named_modules() if linear_shape(module) is not None]
    suffixes = set()
    for name in wanted:
        parts = name.split(".")
        for start in range(len(parts) - 1, -1, -1):
            suffix = ".".join(parts[start:])
            if all(n in wanted for n in every if n == suffix or n.endswith(f".{suffix}")):
                suffixes.add(suffix)
                break
    return sorted(suffixes)
