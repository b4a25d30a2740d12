"""Configuration of TriLoRA, the adapter of H2Tune, as a PEFT method."""

from dataclasses import dataclass, field
from typing import Literal

from peft.config import PeftConfig
from peft.utils import PeftType

from worker.federated.adapters.geometry import Layout
from worker.federated.adapters.stack import AlignmentSharing
from worker.federated.alignment import AlignmentConstraint, AlignmentStart

FactorStart = Literal["random", "orthonormal", "shared_seed"]

TRILORA = "TRILORA"


@dataclass
class TriLoraConfig(PeftConfig):
    """y = W x + (lora_alpha / r) B (I + T) A dropout(x), with T cut from a common R x R matrix.

    Works on every model of `worker.federated.roles`. Fields carry their meaning in `help`.
    """

    r: int = field(default=8, metadata={"help": "Rank of the private factors A and B."})
    global_rank: int | None = field(
        default=None,
        metadata={"help": "R: the middle matrices are cut from R x R. None: R = r."},
    )
    num_slots: int | None = field(
        default=None,
        metadata={"help": "L*: depth of the common stack. None: the model's own depth."},
    )
    lora_alpha: float = field(
        default=16.0, metadata={"help": "Scale: the update is multiplied by lora_alpha / r."}
    )
    lora_dropout: float = field(default=0.0, metadata={"help": "Dropout before A, in [0, 1)."})
    layout: Layout = field(
        default="block",
        metadata={"help": "Which entries of R x R are held: block (default), mask or gather."},
    )
    sparsity: float | None = field(
        default=None, metadata={"help": "Share of zeros in R x R. None: 1 - (r / R)^2."}
    )
    identity: bool = field(
        default=True,
        metadata={
            "help": "True: B (I + T) A with B = 0 at the start, a LoRA whose core is shared. "
            "False: B T A with T = 0 at the start, for factors that carry a meaning of their own."
        },
    )
    alignment_start: AlignmentStart = field(
        default="interpolation",
        metadata={"help": "Start of the layer alignment: interpolation, random or identity."},
    )
    alignment_constraint: AlignmentConstraint = field(
        default="orthonormal",
        metadata={"help": "orthonormal columns, or free columns with pseudo_inverse."},
    )
    alignment_sharing: AlignmentSharing = field(
        default="per_model", metadata={"help": "One alignment per_model, or per_role."}
    )
    factor_start: FactorStart = field(
        default="random",
        metadata={
            "help": "Start of A. random: like LoRA. orthonormal: orthonormal rows. shared_seed: "
            "one draw per role, equal for all layers and for all models of equal width."
        },
    )
    seed: int = field(default=0, metadata={"help": "Seed of this model's own random starts."})
    shared_seed: int = field(
        default=0,
        metadata={"help": "Seed of what models have in common: `shared_seed` factors, scores."},
    )
    target_modules: list[str] | set[str] | str | None = field(
        default=None,
        metadata={"help": "Ends of module names. None: every role of the family."},
    )
    exclude_modules: list[str] | str | None = field(
        default=None, metadata={"help": "Ends of module names to leave out."}
    )
    modules_to_save: list[str] | None = field(
        default=None, metadata={"help": "Modules trained and saved whole, such as a new head."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()  # type: ignore[no-untyped-call]
        self.peft_type = PeftType(TRILORA)
        if isinstance(self.target_modules, list):
            self.target_modules = set(self.target_modules)
