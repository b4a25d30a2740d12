"""Names and units of what is measured; every chart, table and export uses these."""

from enum import StrEnum
from typing import Annotated

from pydantic import AfterValidator, FiniteFloat


class MetricName(StrEnum):
    """One value per client and round, unless the description says otherwise.

    `metric_catalogue` has a unit and a sentence for each.

    Accuracies are shares in [0, 1] on the client's test split, losses are nats per answer token,
    `bytes_*` count the encoded payload, `seconds_*` are wall-clock times.
    """

    ACCURACY_BEFORE_TRAINING = "accuracy_before_training"  # after loading what was received
    ACCURACY_AFTER_TRAINING = "accuracy_after_training"  # before sending
    AGGREGATION_GAP = "aggregation_gap"  # accuracy before training - after it one round earlier
    VALIDATION_LOSS_BEFORE_TRAINING = "validation_loss_before_training"
    VALIDATION_LOSS_AFTER_TRAINING = "validation_loss_after_training"
    ACCURACY_DELIVERED = "accuracy_delivered"  # of the exported adapter; deliver round only
    GUARD_KEPT_OWN = "guard_kept_own"  # 1: a client's validation split refused the final state
    TRAIN_LOSS = "train_loss"  # mean over the round; within a round: of one step
    SPARSITY = "sparsity"  # realised share of zeros in the shared matrices
    BYTES_UP = "bytes_up"
    BYTES_DOWN = "bytes_down"
    BYTES_UP_VALUES = "bytes_up_values"  # of these, the numbers alone: no names, no header
    BYTES_DOWN_VALUES = "bytes_down_values"
    BYTES_LORA = "bytes_lora"  # what sending the client's LoRA factors A and B would cost
    SECONDS_WAIT = "seconds_wait"  # from the opening of the round to the attempt that counted
    SECONDS_LOAD = "seconds_load"
    SECONDS_TRAIN = "seconds_train"
    SECONDS_EVALUATE = "seconds_evaluate"
    PEAK_MEMORY_BYTES = "peak_memory_bytes"
    NUM_EXAMPLES = "num_examples"  # of the client's training split; its weight in the aggregation
    NUM_TOKENS = "num_tokens"  # answer and prompt tokens trained on in the round
    SHARED_CHANGE = "shared_change"  # relative norm of the change of the shared matrices sent
    SHARED_DRIFT = "shared_drift"  # |sent slots - received slots| / |received|, on held entries
    PRIVATE_CHANGE = "private_change"  # relative norm of the change of the private factors
    CHANGE_NORM_A = "change_norm_a"  # norm of the round's change of the factors A
    CHANGE_NORM_B = "change_norm_b"
    MASK_CHURN = "mask_churn"  # 1 - Jaccard index of the mask to the one before
    ALIGNMENT_ERROR = "alignment_error"  # largest deviation of P^T P from the identity
    ALIGNMENT_ENTROPY = "alignment_entropy"  # nats: how many layers a slot is spread over
    COSINE_TO_MEAN = "cosine_to_mean"  # of the client's change and the aggregated one
    CONTRIBUTION = "contribution"  # cosine of the client's change and that of all others together
    NORM_SHARE = "norm_share"  # of the weighted norms of all changes, the client's part
    SENT_NORM = "sent_norm"  # of the client's change of all shared matrices together
    OUTLIER_SCORE = "outlier_score"  # robust z-score of the distance to the median change
    KEPT_SHARE = "kept_share"  # of the client's update, what a robust rule used
    EPSILON = "epsilon"  # spent by the client up to this round; differential privacy only
    UPDATE_NORM = "update_norm"  # of the whole change before clipping; differential privacy only


SERVER_MEASURED = frozenset(
    {
        MetricName.COSINE_TO_MEAN,
        MetricName.CONTRIBUTION,
        MetricName.NORM_SHARE,
        MetricName.SENT_NORM,
        MetricName.OUTLIER_SCORE,
        MetricName.KEPT_SHARE,
    }
)
"""What the server finds out about a client, which the client itself may not say."""


def _of_clients(values: dict[MetricName, float]) -> dict[MetricName, float]:
    forged = sorted(values.keys() & SERVER_MEASURED)
    if forged:
        raise ValueError(f"{', '.join(forged)}: measured by the server, leave it out")
    return values


ClientMetrics = Annotated[dict[MetricName, FiniteFloat], AfterValidator(_of_clients)]
"""Values that a client measured, as it sends them."""
