"""Configuration of FedAdapter, the adapter of HeteroTune, as a PEFT method."""

from dataclasses import dataclass, field
from typing import Literal

from peft.config import PeftConfig
from peft.utils import PeftType

Activation = Literal["relu", "gelu", "silu", "identity"]
Gating = Literal["scalars", "softmax"]

FEDADAPTER = "FEDADAPTER"


@dataclass
class FedAdapterConfig(PeftConfig):
    """h <- h + U phi(sum_b g_b F_b D dropout(h)) on the output h of every block of a model.

    Works on every model of `worker.federated.roles`. Fields carry their meaning in `help`. The
    update depends on the block's whole output, residual stream included, so no LoRA on the linear
    layers inside has the same effect, not even with `activation="identity"`: an adapter like this
    loads with PEFT where `worker.federated.adapters` is imported, and nowhere else.
    """

    bottleneck: int = field(
        default=8, metadata={"help": "kappa: width of the shared branches, kappa x kappa each."}
    )
    num_branches: int = field(
        default=4, metadata={"help": "Branches that this model holds (its capacity tier)."}
    )
    activation: Activation = field(
        default="gelu", metadata={"help": "phi: relu, gelu, silu or identity."}
    )
    gating: Gating = field(
        default="scalars",
        metadata={
            "help": "scalars: one learned weight per branch. softmax: a dense mixture, the weights "
            "of all branches follow from each token."
        },
    )
    dropout: float = field(default=0.0, metadata={"help": "Dropout before D, in [0, 1)."})
    seed: int = field(default=0, metadata={"help": "Seed of this model's own random starts (D)."})
    shared_seed: int = field(
        default=0, metadata={"help": "Seed of the branches' start, equal for all models."}
    )
    target_modules: list[str] | set[str] | str | None = field(
        default=None, metadata={"help": "Ends of blocks' names. None: every block."}
    )
    exclude_modules: list[str] | str | None = field(
        default=None, metadata={"help": "Ends of blocks' names to leave out."}
    )
    modules_to_save: list[str] | None = field(
        default=None, metadata={"help": "Modules trained and saved whole, such as a new head."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()  # type: ignore[no-untyped-call]
        self.peft_type = PeftType(FEDADAPTER)
        if isinstance(self.target_modules, list):
            self.target_modules = set(self.target_modules)
