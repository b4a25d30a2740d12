"""When a run has learned enough: a target, or rounds without progress."""

from collections.abc import Sequence
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from backend.contracts.privacy import PrivacySettings

StopMetric = Literal["accuracy_after_training", "validation_loss_after_training", "train_loss"]
"""What may decide; a higher accuracy is better, a lower loss is."""


class StopRule(BaseModel):
    """Looked at whenever a training round closes; the run then goes to the delivery."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    metric: StopMetric = Field(
        "accuracy_after_training",
        title="Measured by",
        description="The mean over the clients that took part in the round. Validation loss needs "
        "validation rows. Accuracies on test rows decide here, so they judge a little too well: "
        "choose a loss where that matters.",
    )
    target: float | None = Field(
        None,
        title="Target",
        description="Stop as soon as the mean is as good as this. Empty: no target.",
    )
    patience: int | None = Field(
        None,
        ge=1,
        le=10_000,
        title="Patience (rounds)",
        description="Stop after so many rounds without progress. Empty: go on.",
    )
    min_delta: float = Field(
        0.0,
        ge=0,
        title="Smallest progress",
        description="The best mean must improve by more than this to count as progress.",
    )

    @model_validator(mode="after")
    def _decides(self) -> Self:
        if self.target is None and self.patience is None:
            raise ValueError(
                "neither target nor patience is given: give one, or leave the rule out"
            )
        return self

    def reason(self, means: Sequence[float]) -> str | None:
        """Why to stop, as a sentence; None: go on.

        Args:
            means: of the rounds that measured the metric, in their order.
        """
        if not means:
            return None
        sign = 1.0 if self.metric == "accuracy_after_training" else -1.0
        name = self.metric.replace("_", " ")
        if self.target is not None and sign * means[-1] >= sign * self.target:
            return f"The mean {name}, {means[-1]:.4g}, reached the target of {self.target:g}."
        if self.patience is None or len(means) <= self.patience:
            return None
        values = [sign * mean for mean in means]
        if max(values[-self.patience :]) > max(values[: -self.patience]) + self.min_delta:
            return None
        return (
            f"The mean {name} made no progress of more than {self.min_delta:g} in "
            f"{self.patience} {'round' if self.patience == 1 else 'rounds'}."
        )


def stop_refusal(rule: StopRule | None, privacy: PrivacySettings) -> str | None:
    """Why the platform cannot decide by this rule; None: it can."""
    noise = privacy.differential_privacy
    if rule is None or noise is None or noise.publish_measurements:
        return None
    return (
        f"With differential privacy clients do not publish {rule.metric}: leave the rule out, or "
        "set publish_measurements."
    )
