"""What every measured value means: unit, sentence, and which direction is better."""

from collections.abc import Mapping
from enum import StrEnum

from pydantic import BaseModel, ConfigDict, Field

from backend.contracts.metrics import MetricName


class Unit(StrEnum):
    """What a value counts."""

    SHARE = "share"  # 0 to 1
    DIFFERENCE = "difference of shares"  # -1 to 1
    NATS = "nats"
    BYTES = "bytes"
    SECONDS = "seconds"
    COUNT = "count"
    RATIO = "ratio"  # of two norms; 0 and above
    NORM = "norm"
    COSINE = "cosine"  # -1 to 1
    DEVIATIONS = "deviations"  # robust standard deviations
    EPSILON = "epsilon"


class MetricInfo(BaseModel):
    """A measured value, as `GET /metrics` lists it."""

    model_config = ConfigDict(frozen=True)

    name: str
    unit: Unit
    description: str
    higher_is_better: bool | None = Field(None, description="null: neither is")


class MetricCatalogue(BaseModel):
    """All values there may be."""

    model_config = ConfigDict(frozen=True)

    metrics: list[MetricInfo] = Field(description="per client and round, in the metrics of a run")
    report: list[MetricInfo] = Field(description="per round, in `report` of a round")


def _info(name: str, unit: Unit, description: str, better: bool | None = None) -> MetricInfo:
    return MetricInfo(name=name, unit=unit, description=description, higher_is_better=better)


_M = MetricName
_ALL = (
    _info(
        _M.ACCURACY_BEFORE_TRAINING,
        Unit.SHARE,
        "Right answers on the client's test split, after loading what was received.",
        better=True,
    ),
    _info(
        _M.ACCURACY_AFTER_TRAINING,
        Unit.SHARE,
        "Right answers on the client's test split, after training and before sending.",
        better=True,
    ),
    _info(
        _M.ACCURACY_DELIVERED,
        Unit.SHARE,
        "Right answers of the delivered adapter on the client's test split.",
        better=True,
    ),
    _info(
        _M.GUARD_KEPT_OWN,
        Unit.SHARE,
        "1: the client's validation split refused the final state, so it delivers an earlier one "
        "of its own.",
        better=False,
    ),
    _info(
        _M.AGGREGATION_GAP,
        Unit.DIFFERENCE,
        "What the last aggregation did to the client: accuracy before training (or delivered) "
        "minus accuracy after training in the round before.",
        better=True,
    ),
    _info(
        _M.VALIDATION_LOSS_BEFORE_TRAINING,
        Unit.NATS,
        "Loss per answer token on the validation split, after loading what was received.",
        better=False,
    ),
    _info(
        _M.VALIDATION_LOSS_AFTER_TRAINING,
        Unit.NATS,
        "Loss per answer token on the validation split, after training.",
        better=False,
    ),
    _info(
        _M.TRAIN_LOSS,
        Unit.NATS,
        "Training loss per target: mean over the round, or of one step within it.",
        better=False,
    ),
    _info(_M.SPARSITY, Unit.SHARE, "Zeros in the shared matrices, as they really are."),
    _info(_M.BYTES_UP, Unit.BYTES, "Encoded message to the server.", better=False),
    _info(_M.BYTES_DOWN, Unit.BYTES, "Encoded message from the server.", better=False),
    _info(_M.BYTES_UP_VALUES, Unit.BYTES, "Of the message up, its numbers.", better=False),
    _info(_M.BYTES_DOWN_VALUES, Unit.BYTES, "Of the message down, its numbers.", better=False),
    _info(_M.BYTES_LORA, Unit.BYTES, "What sending the LoRA factors A and B would cost."),
    _info(
        _M.SECONDS_WAIT,
        Unit.SECONDS,
        "From the opening of the round to the start of the attempt that counted.",
        better=False,
    ),
    _info(_M.SECONDS_LOAD, Unit.SECONDS, "Loading model, adapter and data.", better=False),
    _info(_M.SECONDS_TRAIN, Unit.SECONDS, "Training.", better=False),
    _info(_M.SECONDS_EVALUATE, Unit.SECONDS, "Measuring before and after training.", better=False),
    _info(_M.PEAK_MEMORY_BYTES, Unit.BYTES, "Highest use of memory by the process.", better=False),
    _info(_M.NUM_EXAMPLES, Unit.COUNT, "Training rows: the client's weight in the mean."),
    _info(_M.NUM_TOKENS, Unit.COUNT, "Tokens trained on, prompts included."),
    _info(
        _M.SHARED_CHANGE,
        Unit.RATIO,
        "How much the client changed its shared matrices in the round, relative to their norm.",
    ),
    _info(
        _M.SHARED_DRIFT,
        Unit.RATIO,
        "Norm of what was sent minus what was received, relative to the latter.",
    ),
    _info(
        _M.PRIVATE_CHANGE,
        Unit.RATIO,
        "How much the private factors changed in the round, relative to their norm.",
    ),
    _info(_M.CHANGE_NORM_A, Unit.NORM, "Norm of the round's change of the factors A."),
    _info(_M.CHANGE_NORM_B, Unit.NORM, "Norm of the round's change of the factors B."),
    _info(_M.MASK_CHURN, Unit.SHARE, "1 minus the overlap (Jaccard) of the mask with the last."),
    _info(
        _M.ALIGNMENT_ERROR,
        Unit.NORM,
        "Largest deviation of P^T P from the identity; 0: the alignment loses nothing.",
        better=False,
    ),
    _info(
        _M.ALIGNMENT_ENTROPY,
        Unit.NATS,
        "Over how many layers a common slot is spread; 0: each slot is one layer.",
    ),
    _info(
        _M.COSINE_TO_MEAN,
        Unit.COSINE,
        "Direction of the client's change beside the weighted mean of all changes: 1, the same; "
        "0, unrelated; -1, opposed.",
    ),
    _info(
        _M.CONTRIBUTION,
        Unit.COSINE,
        "Direction of the client's change beside the mean of all others, without its own: above "
        "0 it helps where the others go, below 0 it pulls back.",
    ),
    _info(
        _M.NORM_SHARE,
        Unit.SHARE,
        "Part of the client in the sum of all weighted norms: how loud it is, whatever it says.",
    ),
    _info(
        _M.SENT_NORM,
        Unit.NORM,
        "Length of the client's change of all shared matrices together, as the server gets it.",
    ),
    _info(
        _M.OUTLIER_SCORE,
        Unit.DEVIATIONS,
        "Distance of the client's change to the median of all, in robust standard deviations "
        "above the usual distance; above 3.5 it is unusual.",
        better=False,
    ),
    _info(
        _M.KEPT_SHARE,
        Unit.SHARE,
        "Of the client's update, what the robust rule used: of its numbers, or of its length.",
    ),
    _info(
        _M.EPSILON,
        Unit.EPSILON,
        "Privacy spent by the client up to this round (differential privacy).",
        better=False,
    ),
    _info(_M.UPDATE_NORM, Unit.NORM, "Norm of the whole change before it is clipped."),
)
METRICS: Mapping[MetricName, MetricInfo] = {MetricName(info.name): info for info in _ALL}
"""Every metric, by name."""

_REPORT = (
    _info("seconds_aggregate", Unit.SECONDS, "Aggregating, reading and writing included.", False),
    _info("relative_change", Unit.RATIO, "How much the shared state changed in the round."),
    _info(
        "update_cosine",
        Unit.COSINE,
        "Mean cosine of the clients' changes over all pairs: 1, all agree; 0, unrelated.",
        better=True,
    ),
    _info(
        "agreement_explained",
        Unit.SHARE,
        "Of what the clients' models say alike about the probe texts, what the common codes hold.",
        better=True,
    ),
    _info(
        "conflict_rate",
        Unit.SHARE,
        "Changes that point against the common direction.",
        better=False,
    ),
    _info(
        "sketch_cosine",
        Unit.COSINE,
        "Mean cosine of the clients' gradient sketches over all pairs, from which `mixing_weight/"
        "<receiver>/<source>` follow.",
    ),
    _info("num_groups", Unit.COUNT, "Groups of clients of equal shape; they share within only."),
    _info("num_clients_alone", Unit.COUNT, "Clients with no other in their group.", better=False),
    _info("update_norm", Unit.NORM, "Norm of the sum of all clients' updates."),
    _info("mean_rank", Unit.COUNT, "Rank of what is shared, mean over clients or layers."),
    _info("largest_rank", Unit.COUNT, "Rank of what is shared, where it is largest."),
    _info("stacked_rank", Unit.COUNT, "Rank of all clients' factors side by side."),
    _info("energy_kept", Unit.SHARE, "Of the sum's squared size, what is sent back.", better=True),
    _info(
        "kept_by_largest_rank",
        Unit.SHARE,
        "Of the sum's norm, what an adapter of the largest rank holds.",
        better=True,
    ),
    _info(
        "kept_by_smallest_rank",
        Unit.SHARE,
        "Of the sum's norm, what an adapter of the smallest rank holds.",
        better=True,
    ),
    _info("largest_weight", Unit.SHARE, "Weight of the client that counts most in the mean."),
    _info("num_left_out", Unit.COUNT, "Updates that the robust rule did not use."),
    _info("num_clipped", Unit.COUNT, "Updates whose change was shortened."),
    _info("clip_norm", Unit.NORM, "Norm to which longer changes were shortened."),
    _info("num_dropouts", Unit.COUNT, "Clients lost during secure aggregation.", better=False),
    _info("rounding_error_bound", Unit.NORM, "Most that fixed-point sums can be off by."),
)
REPORT_VALUES: Mapping[str, MetricInfo] = {info.name: info for info in _REPORT}
"""Values of a round's report that several strategies give; others speak for themselves."""


def metric_catalogue() -> MetricCatalogue:
    """All of it."""
    return MetricCatalogue(metrics=list(METRICS.values()), report=list(REPORT_VALUES.values()))
