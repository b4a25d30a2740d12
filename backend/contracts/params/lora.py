"""Parameters of strategies on plain LoRA factors, the local baseline among them."""

from typing import Literal

from pydantic import Field

from backend.contracts.enums import StrategyName
from backend.contracts.params.base import GroupableParams, StrategyParams


class LocalOnlyParams(StrategyParams):
    """Plain LoRA on each client's own data; nothing is shared. The baseline to beat."""

    name: Literal[StrategyName.LOCAL_ONLY] = StrategyName.LOCAL_ONLY
    guard: Literal["off", "validation"] = Field(
        "off",
        title="Guard",
        description="validation: early stopping, a client delivers the state with the lowest "
        "validation loss of all that were measured, the untrained one and the last included. "
        "Without a validation split: the last. Training goes on to the end either way.",
    )


class FedItParams(GroupableParams):
    """FedIT: LoRA factors averaged one by one. Simple, and not exact."""

    name: Literal[StrategyName.FEDIT] = StrategyName.FEDIT


class FfaLoraParams(GroupableParams):
    """FFA-LoRA: one frozen random A for all, only B is averaged. Exact, half the traffic."""

    name: Literal[StrategyName.FFA_LORA] = StrategyName.FFA_LORA


class FedSaLoraParams(GroupableParams):
    """FedSA-LoRA: A is averaged, B stays private, so tasks may differ."""

    name: Literal[StrategyName.FEDSA_LORA] = StrategyName.FEDSA_LORA


class FedExLoraParams(GroupableParams):
    """FedEx-LoRA: FedIT, and what averaging misses goes into the base weights. Exact."""

    name: Literal[StrategyName.FEDEX_LORA] = StrategyName.FEDEX_LORA


class FloraParams(GroupableParams):
    """FLoRA: factors of any ranks stacked and added to the base weights every round. Exact."""

    name: Literal[StrategyName.FLORA] = StrategyName.FLORA


class FedPLoraParams(GroupableParams):
    """Fed-PLoRA: pairs of rank one; a client trains as many of them as its rank allows."""

    name: Literal[StrategyName.FED_PLORA] = StrategyName.FED_PLORA


class HetLoraParams(GroupableParams):
    """HetLoRA: one adapter of the largest rank, of which each client trains the first part."""

    name: Literal[StrategyName.HETLORA] = StrategyName.HETLORA
    self_pruning: bool = Field(
        False,
        title="Self-pruning",
        description="On: a client pushes its last components towards zero and gives them up for "
        "good when that succeeded, so ranks fall to what the data need.",
    )
    pruning_factor: float = Field(
        0.99,
        gt=0,
        lt=1,
        title="Pruning factor",
        description="gamma: the share of its rank that a client falls to in one round, rounded "
        "down. 0.9 to 0.99 is usual.",
    )
    pruning_weight: float = Field(
        0.01,
        ge=0,
        le=100,
        title="Weight of the pruning penalty",
        description="lambda: times the norms of the last components of A and B, added to the loss.",
    )
    smallest_rank: int = Field(
        1,
        ge=1,
        le=4096,
        title="Smallest rank",
        description="No client is pruned below it.",
    )


class FlexLoraParams(GroupableParams):
    """FlexLoRA: whole updates are added up, and each client gets the best part of its rank."""

    name: Literal[StrategyName.FLEXLORA] = StrategyName.FLEXLORA


class FloristParams(GroupableParams):
    """FLoRIST: FLoRA's exact sum, sent back in no more rank than its energy needs."""

    name: Literal[StrategyName.FLORIST] = StrategyName.FLORIST
    energy: float = Field(
        0.99,
        gt=0,
        le=1,
        title="Share of energy that is kept",
        description="tau: of the squared singular values of each layer's summed update. 1 is "
        "exact; smaller values send less and drop the weakest directions of every round.",
    )
