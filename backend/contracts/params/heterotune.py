"""Parameters of HeteroTune, reconstructed after its abstracts."""

from typing import Literal

from pydantic import Field

from backend.contracts.enums import StrategyName
from backend.contracts.params.base import StrategyParams
from backend.contracts.params.h2tune import ConflictField


class HeteroTuneParams(StrategyParams):
    """HeteroTune (reconstructed): small shared branches inside private adapters after every block.

    What is delivered is a FedAdapter, not a LoRA: it loads with PEFT where
    `worker.federated.adapters` is imported, and cannot be merged into the base weights.
    """

    name: Literal[StrategyName.HETEROTUNE] = StrategyName.HETEROTUNE
    variant: Literal["fedadapter", "dema"] = Field(
        "dema",
        title="Variant",
        description="dema: a dense mixture, each token weighs all branches (default). fedadapter: "
        "one learned weight per branch.",
    )
    bottleneck: int = Field(
        8,
        ge=1,
        le=1024,
        title="Width of the branches",
        description="Branches are square matrices of this width; 8 to 64 is usual. A round sends "
        "its square times 4 bytes per layer and branch.",
    )
    num_branches: int = Field(
        4,
        ge=1,
        le=64,
        title="Branches",
        description="Per layer for a client of the federation's global rank; clients of smaller "
        "rank hold proportionally fewer.",
    )
    activation: Literal["relu", "gelu", "silu", "identity"] = Field(
        "gelu", title="Activation", description="Between the branches and the way up."
    )
    conflict: ConflictField = Field(
        "cmga",
        title="Conflicts between clients",
        description="cmga: takes out what points against the mean of all changes, per branch and "
        "slot (default). pairwise: against any other client. none: the plain mean, the only one "
        "that is linear.",
    )
    server_learning_rate: float = Field(
        1.0,
        gt=0,
        le=10,
        title="Server learning rate",
        description="Factor on the aggregated change.",
    )
    shared_learning_rate: float | None = Field(
        None,
        gt=0,
        le=1,
        title="Learning rate of the branches",
        description="Empty: the run's learning rate.",
    )
    control: Literal["none", "permuted"] = Field(
        "none",
        title="Negative control",
        description="permuted: the entries of what a round changes in each branch are shuffled. A "
        "gain that survives a control is not transfer.",
    )
