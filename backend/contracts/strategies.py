"""Strategy names and their parameters: one `Params` model each, told apart by `name`.

The browser builds its form from these fields, so each carries a title, a description that says
how to choose a value, and its allowed range.
"""

from enum import StrEnum
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class StrategyName(StrEnum):
    """One snake_case name per strategy everywhere: file, database, URL, test id."""

    LOCAL_ONLY = "local_only"
    H2TUNE = "h2tune"
    FEDIT = "fedit"
    FFA_LORA = "ffa_lora"
    FEDSA_LORA = "fedsa_lora"
    FEDEX_LORA = "fedex_lora"
    FLORA = "flora"
    FED_PLORA = "fed_plora"
    HETLORA = "hetlora"
    FLEXLORA = "flexlora"
    FLORIST = "florist"
    HETEROTUNE = "heterotune"
    COLORA = "colora"


class StrategyParams(BaseModel):
    """What all parameter models have in common: unknown fields are refused, values are frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class GroupableParams(StrategyParams):
    """Of strategies that add up matrices of equal shape: they may run inside groups instead."""

    group_by: Literal["none", "architecture"] = Field(
        "none",
        title="Groups",
        description="none: all clients share, and clients whose shapes do not fit are refused "
        "(default). architecture: the strategy runs inside groups of clients of equal "
        "architecture, and of equal rank where it needs that; a client alone in its group trains "
        "alone.",
    )


class LocalOnlyParams(StrategyParams):
    """Plain LoRA on each client's own data; nothing is shared. The baseline to beat."""

    name: Literal[StrategyName.LOCAL_ONLY] = StrategyName.LOCAL_ONLY


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


ConflictField = Literal["none", "cmga", "pairwise"]


class H2TuneParams(StrategyParams):
    """H2Tune: small shared middle matrices between private factors, aligned over depth."""

    name: Literal[StrategyName.H2TUNE] = StrategyName.H2TUNE
    layout: Literal["block", "mask", "gather"] = Field(
        "block",
        title="Layout of the middle matrix",
        description="block: a client of rank r takes an r x r block of the R x R matrix, positions "
        "keep one meaning for all (default). mask: private factors of the full global rank, single "
        "entries dropped; needs more memory. gather: the published code's layout, for fidelity.",
    )
    sparsity: float | None = Field(
        None,
        ge=0,
        lt=1,
        title="Sparsity of the middle matrix",
        description="Share of zeros, the same for every client. Empty: 1 - (r/R)^2 from each "
        "client's own rank.",
    )
    mask_warmup_rounds: int = Field(
        0,
        ge=0,
        le=1000,
        title="Rounds before masks freeze",
        description="Which entries a client holds is learned during these rounds and fixed after. "
        "0: they are fixed from the start, the same for clients of equal rank.",
    )
    alignment_init: Literal["interpolation", "random", "identity"] = Field(
        "interpolation",
        title="Start of the layer alignment",
        description="interpolation: layers of equal relative depth match (default). random: for "
        "ablation. identity: only for clients of equal depth.",
    )
    alignment_constraint: Literal["orthonormal", "pseudo_inverse"] = Field(
        "orthonormal",
        title="How the alignment stays lossless",
        description="orthonormal: columns are kept orthonormal after every step (default). "
        "pseudo_inverse: free columns, the way up uses the left inverse.",
    )
    alignment_sharing: Literal["per_model", "per_role"] = Field(
        "per_model",
        title="Alignments per client",
        description="per_model: one matrix for all module roles. per_role: one per role.",
    )
    train_alignment: bool = Field(
        False,
        title="Train the layer alignment",
        description="As published. Off: the alignment stays where it starts (default).",
    )
    aggregation: Literal["delta", "mean", "coverage", "relevance"] = Field(
        "delta",
        title="Aggregation",
        description="delta: adds the mean change of the clients, so that an idle round changes "
        "nothing (default). mean: replaces the shared state by the mean, as published. coverage: "
        "the mean over the clients that hold an entry. relevance: as delta, but each client learns "
        "only from those whose first changes agree with its own; the server must see single "
        "updates.",
    )
    relevance_rounds: int = Field(
        1,
        ge=1,
        le=1000,
        title="Rounds alone",
        description="Aggregation relevance: rounds in which every client trains alone, before it "
        "is settled who learns from whom.",
    )
    relevance_threshold: float = Field(
        4.0,
        ge=0,
        le=1000,
        title="Agreement that counts",
        description="Aggregation relevance: how many standard deviations above chance the cosine "
        "of two clients' changes must be for them to learn from each other.",
    )
    server_learning_rate: float = Field(
        1.0,
        gt=0,
        le=10,
        title="Server learning rate",
        description="Factor on the aggregated change (delta only).",
    )
    conflict: ConflictField = Field(
        "none",
        title="Conflicts between clients",
        description="delta only, per role and slot. none: changes are averaged as they are "
        "(default, the only linear one). cmga: what points against the mean is taken out first. "
        "pairwise: what points against any other client.",
    )
    granularity: Literal["round", "epoch", "step"] = Field(
        "round",
        title="Alternation",
        description="How often training changes between shared and private parts: once per round "
        "(default), every epoch, or every step.",
    )
    joint_rounds: int | None = Field(
        None,
        ge=0,
        le=1000,
        title="Joint rounds",
        description="First rounds in which shared and private parts train together. Empty: 0 "
        "with gauge probe, else 1, for with the private factor B at zero the shared part has no "
        "gradient.",
    )
    shared_fraction: float | None = Field(
        None,
        gt=0,
        le=1,
        title="Share of steps for the shared part",
        description="Part of a round's local steps that trains the shared matrices and the "
        "alignment; the rest trains the private factors. 1: the private factors stay as they are. "
        "Empty: 1 with gauge probe, else 0.5.",
    )
    shared_learning_rate: float | None = Field(
        None,
        gt=0,
        le=1,
        title="Learning rate of the shared part",
        description="Empty: 0.01 with gauge probe, else the run's learning rate.",
    )
    private_learning_rate: float | None = Field(
        None,
        gt=0,
        le=1,
        title="Learning rate of the private part",
        description="Empty: the run's learning rate.",
    )
    norm_weight: float = Field(
        0.0,
        ge=0,
        le=100,
        title="Weight of the norm penalty",
        description="Mean squared entry of the shared matrices, times this.",
    )
    anchor: Literal["none", "proximal", "kl"] = Field(
        "none",
        title="Anchor of the shared part",
        description="Keeps the shared matrices near the ones received. proximal: squared distance. "
        "kl: the published softmax divergence, for fidelity.",
    )
    anchor_weight: float = Field(0.1, ge=0, le=100, title="Weight of the anchor")
    distillation_weight: float = Field(
        0.0,
        ge=0,
        le=100,
        title="Weight of the distillation",
        description="In the private phase, pulls the answers towards those at the end of the "
        "shared phase (mean divergence per response token).",
    )
    gauge: Literal["auto", "none", "orthonormal", "shared_seed", "probe"] = Field(
        "auto",
        title="Gauge of the private factors",
        description="What coordinates of different clients have in common at the start. auto: "
        "probe where every client chooses among labels, else none. none: random factors. "
        "orthonormal: A with orthonormal rows. shared_seed: A drawn from one seed "
        "for all clients, by module role. probe: factors fitted to codes of public texts, so that "
        "an index means the same in every model; the shared matrices start at zero.",
    )
    code_selection: Literal["leading", "gradient"] = Field(
        "leading",
        title="Codes of smaller ranks",
        description="Gauge probe, layout block: which of the R codes a client of smaller rank "
        "holds. leading: those that vary most in the public texts. gradient: those along which "
        "its own training loss falls fastest.",
    )
    guard: Literal["off", "validation"] = Field(
        "off",
        title="Guard",
        description="validation: a client delivers the final shared state unless a state that it "
        "had before does better on its validation split. Training goes on from what is shared "
        "either way.",
    )
    control: Literal["none", "permuted", "noise"] = Field(
        "none",
        title="Negative control",
        description="permuted: the entries of what a round changes in the shared matrices are "
        "shuffled. noise: replaced by noise of the same norm. A gain that survives a control is "
        "not transfer.",
    )

    @model_validator(mode="after")
    def _conflicts_are_between_changes(self) -> Self:
        if self.conflict != "none" and self.aggregation != "delta":
            raise ValueError(
                f"conflict is {self.conflict!r} but aggregation is {self.aggregation!r}: only "
                "changes can be in conflict, choose aggregation 'delta' or conflict 'none'."
            )
        return self


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


class CoLoraParams(StrategyParams):
    """Co-LoRA: a local LoRA, and small modules that each client receives in a mixture of its own.

    How much a client takes from another one follows from how alike their gradients are.
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
        "One R x R module per block end and module role, and a noised sketch of the gradient.",
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
    if not is_grouped(params):
        return title
    needs_rank = not _DESCRIPTIONS[params.name][4].rank
    return f"{title}, in groups of equal architecture{' and rank' if needs_rank else ''}"
