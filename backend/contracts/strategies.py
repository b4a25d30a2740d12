"""Every strategy for people and programs: its parameters, what it shares, what it can handle."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from backend.contracts.enums import StrategyName
from backend.contracts.params.base import GroupableParams, StrategyParams
from backend.contracts.params.colora import CoLoraParams
from backend.contracts.params.h2tune import H2TuneParams
from backend.contracts.params.heterotune import HeteroTuneParams
from backend.contracts.params.lora import (
    FedExLoraParams,
    FedItParams,
    FedPLoraParams,
    FedSaLoraParams,
    FfaLoraParams,
    FlexLoraParams,
    FloraParams,
    FloristParams,
    HetLoraParams,
    LocalOnlyParams,
)

Params = Annotated[
    LocalOnlyParams
    | FedItParams
    | FfaLoraParams
    | FedSaLoraParams
    | FedExLoraParams
    | FloraParams
    | FedPLoraParams
    | HetLoraParams
    | FlexLoraParams
    | FloristParams
    | H2TuneParams
    | HeteroTuneParams
    | CoLoraParams,
    Field(discriminator="name"),
]
"""Any strategy's parameters, as sent over HTTP and stored with the run."""

PARAMS: TypeAdapter[Params] = TypeAdapter(Params)
"""Reads them from JSON values; made once, because making it takes a while."""


class Capabilities(BaseModel):
    """Which differences between clients a strategy handles, and what follows for privacy."""

    model_config = ConfigDict(frozen=True)

    rank: bool = Field(description="LoRA ranks may differ")
    depth: bool = Field(description="numbers of layers may differ")
    width: bool = Field(description="hidden sizes and families may differ")
    task: bool = Field(description="tasks may differ")
    linear_aggregation: bool = Field(description="secure aggregation is possible")


class StrategyInfo(BaseModel):
    """What `GET /strategies` says about one strategy."""

    model_config = ConfigDict(frozen=True)

    name: StrategyName
    title: str
    summary: str
    reference: str | None = None
    shares: str = Field(description="what leaves a client")
    capabilities: Capabilities
    params_schema: dict[str, object] = Field(description="JSON Schema of the parameters")


_DESCRIPTIONS: dict[StrategyName, tuple[type[StrategyParams], str, str | None, str, Capabilities]]
_DESCRIPTIONS = {
    StrategyName.LOCAL_ONLY: (
        LocalOnlyParams,
        "Local only",
        None,
        "Nothing.",
        Capabilities(rank=True, depth=True, width=True, task=True, linear_aggregation=True),
    ),
    StrategyName.FEDIT: (
        FedItParams,
        "FedIT",
        "arXiv 2305.05644",
        "The LoRA factors A and B.",
        Capabilities(rank=False, depth=False, width=False, task=False, linear_aggregation=True),
    ),
    StrategyName.FFA_LORA: (
        FfaLoraParams,
        "FFA-LoRA",
        "arXiv 2403.12313 (ICLR 2024)",
        "The LoRA factor B.",
        Capabilities(rank=False, depth=False, width=False, task=False, linear_aggregation=True),
    ),
    StrategyName.FEDSA_LORA: (
        FedSaLoraParams,
        "FedSA-LoRA",
        "arXiv 2410.01463 (ICLR 2025)",
        "The LoRA factor A.",
        Capabilities(rank=False, depth=False, width=False, task=True, linear_aggregation=True),
    ),
    StrategyName.FEDEX_LORA: (
        FedExLoraParams,
        "FedEx-LoRA",
        "arXiv 2410.09432 (ACL 2025)",
        "The LoRA factors A and B.",
        Capabilities(rank=False, depth=False, width=False, task=False, linear_aggregation=False),
    ),
    StrategyName.FLORA: (
        FloraParams,
        "FLoRA",
        "arXiv 2409.05976 (NeurIPS 2024)",
        "The LoRA factors A and B.",
        Capabilities(rank=True, depth=False, width=False, task=False, linear_aggregation=False),
    ),
    StrategyName.FED_PLORA: (
        FedPLoraParams,
        "Fed-PLoRA",
        "ICLR 2026 (our implementation)",
        "The rows of A and columns of B that the client trained.",
        Capabilities(rank=True, depth=False, width=False, task=False, linear_aggregation=False),
    ),
    StrategyName.HETLORA: (
        HetLoraParams,
        "HetLoRA",
        "arXiv 2401.06432 (EMNLP 2024, our implementation)",
        "The LoRA factors A and B.",
        Capabilities(rank=True, depth=False, width=False, task=False, linear_aggregation=False),
    ),
    StrategyName.FLEXLORA: (
        FlexLoraParams,
        "FlexLoRA",
        "arXiv 2402.11505 (NeurIPS 2024)",
        "The LoRA factors A and B.",
        Capabilities(rank=True, depth=False, width=False, task=False, linear_aggregation=False),
    ),
    StrategyName.FLORIST: (
        FloristParams,
        "FLoRIST",
        "arXiv 2506.09199 (MLSys 2026)",
        "The LoRA factors A and B.",
        Capabilities(rank=True, depth=False, width=False, task=False, linear_aggregation=False),
    ),
    StrategyName.H2TUNE: (
        H2TuneParams,
        "H2Tune",
        "arXiv 2507.22633 (our implementation)",
        "One R x R middle matrix per aligned layer and module role.",
        Capabilities(rank=True, depth=True, width=True, task=True, linear_aggregation=True),
    ),
    StrategyName.HETEROTUNE: (
        HeteroTuneParams,
        "HeteroTune (reconstructed)",
        "After the abstracts of arXiv 2411.16796",
        "How the branches of its layers changed, one small square matrix per layer and branch.",
        Capabilities(rank=True, depth=True, width=True, task=False, linear_aggregation=False),
    ),
    StrategyName.COLORA: (
        CoLoraParams,
        "Co-LoRA",
        "FedMosaic, ICLR 2026 (our implementation)",
        "One R x R module per block end and module role, and a noised sketch of the gradient; to "
        "clients of the same model also the LoRA factors A and B.",
        Capabilities(rank=True, depth=True, width=True, task=True, linear_aggregation=False),
    ),
}


def describe_strategies() -> list[StrategyInfo]:
    """Every strategy with its parameters as JSON Schema, in the order of `StrategyName`."""
    return [info_of(name) for name in StrategyName]


def info_of(name: StrategyName) -> StrategyInfo:
    """One strategy with its parameters as JSON Schema."""
    params, title, reference, shares, capabilities = _DESCRIPTIONS[name]
    return StrategyInfo(
        name=name,
        title=title,
        summary=(params.__doc__ or "").strip(),
        reference=reference,
        shares=shares,
        capabilities=capabilities,
        params_schema=params.model_json_schema(),
    )


def is_grouped(params: StrategyParams) -> bool:
    """Whether the strategy runs inside groups of equal clients instead of over all of them."""
    return isinstance(params, GroupableParams) and params.group_by != "none"


def title_of(params: Params) -> str:
    """The strategy for people, and how it runs: `FedIT, in groups of equal architecture`."""
    title = _DESCRIPTIONS[params.name][1]
    control = getattr(params, "control", "none")
    if control != "none":
        title = f"{title}, control: {control}"
    if not is_grouped(params):
        return title
    needs_rank = not _DESCRIPTIONS[params.name][4].rank
    return f"{title}, in groups of equal architecture{' and rank' if needs_rank else ''}"
