"""Which base model a client fine-tunes, and the tiny ones that ship with the product."""

from enum import StrEnum
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class BuiltinModelName(StrEnum):
    """Tiny pre-trained causal models in `worker/builtin_models/<name>`."""

    TINY_LLAMA = "tiny_llama"
    TINY_GEMMA = "tiny_gemma"
    TINY_QWEN2 = "tiny_qwen2"


class BaseModelRef(BaseModel):
    """Where a base model's weights come from; always safetensors, never remote code."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: Literal["builtin", "folder", "hub"] = Field(
        description="builtin: ships with FedBraid. folder: a folder on the machine that trains. "
        "hub: a Hugging Face id."
    )
    id: str = Field(min_length=1, max_length=500, examples=["tiny_llama"])


class Architecture(BaseModel):
    """The shape of a base model, as its `config.json` states it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    family: str = Field(min_length=1, max_length=100, description="transformers' `model_type`")
    num_layers: int = Field(ge=1, le=10_000)
    hidden_size: int = Field(ge=1, le=1_000_000)


class BaseModelInfo(BaseModel):
    """A base model that this platform can train with, as `GET /base-models` lists it."""

    model_config = ConfigDict(frozen=True)

    ref: BaseModelRef
    architecture: Architecture
