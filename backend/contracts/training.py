"""How a client trains in one round, whatever the strategy."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class TrainingConfig(BaseModel):
    """Local training of one round; equal for all clients of a run so that arms are comparable."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    local_steps: int | None = Field(
        40,
        ge=0,
        le=1_000_000,
        title="Local steps per round",
        description="Optimizer steps per client and round. Empty: `local_epochs` counts instead.",
    )
    local_epochs: int = Field(
        1,
        ge=1,
        le=1000,
        title="Local epochs per round",
        description="Passes over a client's training data; used when local steps are empty.",
    )
    batch_size: int = Field(8, ge=1, le=4096, title="Batch size")
    gradient_accumulation_steps: int = Field(1, ge=1, le=4096, title="Gradient accumulation")
    learning_rate: float = Field(
        3e-3,
        gt=0,
        le=1,
        title="Learning rate",
        description="Of AdamW. About 1e-3 to 5e-3 for tiny models, 1e-4 to 3e-4 for 1B and more.",
    )
    weight_decay: float = Field(0.0, ge=0, le=1, title="Weight decay")
    max_grad_norm: float = Field(1.0, gt=0, le=1e6, title="Gradient clipping norm")
    warmup_fraction: float = Field(
        0.0, ge=0, le=1, title="Warm-up", description="Share of a round's steps with rising rate."
    )
    lr_schedule: Literal["constant", "cosine"] = Field("constant", title="Learning rate schedule")
    round_decay: float = Field(
        1.0,
        gt=0,
        le=1,
        title="Decay of the learning rate per round",
        description="Every round's learning rates, shared and private, are this times those of the "
        "round before. Below 1 the last rounds take smaller steps, so that what is delivered "
        "depends less on the last examples.",
    )
    max_length: int = Field(
        256, ge=8, le=1_000_000, title="Maximum length (tokens)", description="Prompt and answer."
    )
    answer_loss: Literal["tokens", "labels"] = Field(
        "labels",
        title="Loss on answers",
        description="tokens: every token of the right answer, over the whole vocabulary. labels: "
        "the right one of the possible answers, where a task has such (choice, classification); "
        "learns more from few examples.",
    )
    lora_dropout: float = Field(0.0, ge=0, lt=1, title="LoRA dropout")
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto", title="Precision", description="auto: bf16 where a GPU supports it, else fp32."
    )
    max_eval_examples: int | None = Field(
        None, ge=1, title="Evaluation examples", description="Empty: the whole test split."
    )
    evaluate_every: int = Field(
        1,
        ge=1,
        le=1000,
        title="Rounds between evaluations",
        description="Larger values save time where evaluating takes longer than training.",
    )
    group_by_length: bool = Field(
        False,
        title="Group by length",
        description="Batches of texts of about equal length: less padding, slightly less random.",
    )
    gradient_checkpointing: Literal["auto", "on", "off"] = Field(
        "auto",
        title="Gradient checkpointing",
        description="Computes activations twice instead of keeping them: about a third slower, far "
        "less memory, the same result. auto: on a GPU from half a billion weights on.",
    )
    quantization: Literal["none", "nf4"] = Field(
        "none",
        title="Base weights",
        description="nf4: frozen weights in 4 bits (needs an NVIDIA GPU and bitsandbytes).",
    )
    device_map: Literal["none", "auto"] = Field(
        "none",
        title="Several GPUs",
        description="auto: spreads the layers of one model over all GPUs of the machine.",
    )
