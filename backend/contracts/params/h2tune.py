"""Parameters of H2Tune."""

from typing import Literal, Self

from pydantic import Field, model_validator

from backend.contracts.enums import StrategyName
from backend.contracts.params.base import StrategyParams

Writing = Literal["covariance", "effect"]

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
        "of two clients' changes must be for them to learn from each other; and it must be more "
        "than half of what either has in common with its best partner.",
    )
    relevance_scope: Literal["model", "role", "slot", "role_in_slot"] = Field(
        "model",
        title="What is compared",
        description="Aggregation relevance. model: all of two clients' changes; who learns from "
        "whom is the same for all modules (default). role: the changes of each module role by "
        "themselves, so that clients may share their output projections and nothing else. slot: "
        "of each layer of the common stack. role_in_slot: of each role in each of these layers.",
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
    codes: Literal["reference", "exchange"] = Field(
        "reference",
        title="Source of the codes",
        description="Gauge probe. reference: one public model reads the probe texts, and each "
        "client computes its factors alone; nothing is exchanged. exchange: before round 1 every "
        "client's model reads the probe texts, and the codes are what all models agree on; each "
        "client sends once which of the texts its model takes to be alike.",
    )
    writing: Writing = Field(
        "covariance",
        title="How codes are written",
        description="Gauge probe: what writing a code does. covariance: a layer's output comes to "
        "look as it does for texts with more of the code (default; learns most). effect: what the "
        "model finally says of a text moves towards the code; for text encoders that have no "
        "weights in common.",
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
    control: Literal["none", "permuted", "noise", "alone"] = Field(
        "none",
        title="Control",
        description="permuted: the entries of what a round changes in the shared matrices are "
        "shuffled. noise: replaced by noise of the same norm. A gain that survives one of these "
        "is not transfer. alone: every client goes on from its own changes; a gain over local_only "
        "that is left then is owed to the shape, not to others.",
    )

    @model_validator(mode="after")
    def _conflicts_are_between_changes(self) -> Self:
        if self.conflict != "none" and self.aggregation != "delta":
            raise ValueError(
                f"conflict is {self.conflict!r} but aggregation is {self.aggregation!r}: only "
                "changes can be in conflict, choose aggregation 'delta' or conflict 'none'."
            )
        return self
