"""Parameters of Co-LoRA (FedMosaic)."""

from typing import Literal

from pydantic import Field

from backend.contracts.enums import StrategyName
from backend.contracts.params.base import StrategyParams


class CoLoraParams(StrategyParams):
    """Co-LoRA: a local LoRA, and small modules that each client receives in a mixture of its own.

    How much a client takes from another one follows from how alike their gradients are. Clients of
    the same model receive each other's whole LoRAs too.
    """

    name: Literal[StrategyName.COLORA] = StrategyName.COLORA
    num_blocks: int = Field(
        4,
        ge=1,
        le=1000,
        title="Shared layers",
        description="At the ends of this many equal stretches of each model's depth sits a shared "
        "module; at most the depth of the shallowest client is used.",
    )
    gauge: Literal["probe", "orthonormal"] = Field(
        "probe",
        title="Gauge of the frozen factors",
        description="probe: fitted to codes of public texts, so that an index means the same in "
        "every model (default). orthonormal: random, nothing is aligned; for pictures and as "
        "ablation.",
    )
    offset: bool = Field(
        False,
        title="Offset q",
        description="On: shared modules also learn a constant. The delivered adapter then has "
        "biases (PEFT's lora_bias), which cannot be merged where the base model has none.",
    )
    temperature: float = Field(
        0.5,
        gt=0,
        le=1000,
        title="Temperature of the mixture",
        description="Small: a client listens to the most related ones only. Large: to all alike.",
    )
    sketch_noise: float = Field(
        0.1,
        ge=0,
        le=100,
        title="Noise on the gradient sketch",
        description="Norm of the noise next to the sketch's own of 1. Blurs, proves no privacy.",
    )
    shared_learning_rate: float | None = Field(
        None,
        gt=0,
        le=1,
        title="Learning rate of the shared modules",
        description="Empty: the run's learning rate.",
    )
    share_lora: Literal["same_model", "never"] = Field(
        "same_model",
        title="Exchange whole LoRAs",
        description="same_model: clients whose model and LoRA rank are equal also send each other "
        "their LoRA factors, as published. never: shared modules only.",
    )
