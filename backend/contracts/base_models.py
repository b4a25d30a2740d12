"""Which base model a client fine-tunes, and the tiny ones that ship with the product."""

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints


class BuiltinModelName(StrEnum):
    """Tiny pre-trained models in `worker/builtin_models/<name>`."""

    TINY_LLAMA = "tiny_llama"
    TINY_GEMMA = "tiny_gemma"
    TINY_QWEN2 = "tiny_qwen2"
    TINY_VIT = "tiny_vit"
    TINY_DEIT = "tiny_deit"


Reads = Literal["text", "image"]
"""What a base model takes in."""

IMAGE_MODELS = frozenset({BuiltinModelName.TINY_VIT, BuiltinModelName.TINY_DEIT})
"""Built-in models that read pictures; all others write text."""


class BaseModelRef(BaseModel):
    """Where a base model's weights come from; always safetensors, never remote code."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: Literal["builtin", "folder", "hub"] = Field(
        description="builtin: ships with FedBraid. folder: a folder on the machine that trains. "
        "hub: a Hugging Face id."
    )
    id: str = Field(min_length=1, max_length=500, pattern=r"^[^\x00]*$", examples=["tiny_llama"])


class Architecture(BaseModel):
    """The shape of a base model, as its `config.json` states it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    family: str = Field(
        min_length=1,
        max_length=100,
        pattern=r"^[^\x00]*$",
        description="transformers' `model_type`",
    )
    num_layers: int = Field(ge=1, le=10_000)
    hidden_size: int = Field(ge=1, le=1_000_000)


class ModuleShape(BaseModel):
    """A linear layer y = W x with W of shape (out_features, in_features)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    in_features: int = Field(ge=1, le=10_000_000)
    out_features: int = Field(ge=1, le=10_000_000)


RoleName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,39}$")]
"""What a linear layer is for, whatever its family calls it: q, k, v, o, gate, up, down, ..."""

Modules = Annotated[dict[RoleName, ModuleShape], Field(min_length=1, max_length=16)]
"""The adapted layers of a base model by role; equal in every layer of its depth."""


class BaseModelInfo(BaseModel):
    """A base model that this platform can train with, as `GET /base-models` lists it."""

    model_config = ConfigDict(frozen=True)

    ref: BaseModelRef
    architecture: Architecture
    reads: Reads = "text"
    num_parameters: int | None = Field(None, description="weights that are stored, once each")


BUILTIN_MODELS: dict[BuiltinModelName, Architecture] = {
    BuiltinModelName.TINY_LLAMA: Architecture(family="llama", num_layers=4, hidden_size=128),
    BuiltinModelName.TINY_GEMMA: Architecture(family="gemma", num_layers=6, hidden_size=96),
    BuiltinModelName.TINY_QWEN2: Architecture(family="qwen2", num_layers=5, hidden_size=112),
    BuiltinModelName.TINY_VIT: Architecture(family="vit", num_layers=4, hidden_size=64),
    BuiltinModelName.TINY_DEIT: Architecture(family="deit", num_layers=6, hidden_size=48),
}
"""What the built-in models' `config.json` files state, for programs without the worker."""

BUILTIN_NUM_PARAMETERS: dict[BuiltinModelName, int] = {
    BuiltinModelName.TINY_LLAMA: 861_312,
    BuiltinModelName.TINY_GEMMA: 683_232,
    BuiltinModelName.TINY_QWEN2: 801_584,
    BuiltinModelName.TINY_VIT: 138_304,
    BuiltinModelName.TINY_DEIT: 117_168,
}
"""How many weights their safetensors files hold."""
