"""The arms that every comparison of sharing should have, derived from one H2Tune configuration.

| Arm | What it shows |
|---|---|
| `untrained` | where everybody starts |
| `local_only` | plain LoRA alone: the run's learning rate and steps, last round |
| `local_lora` | plain LoRA alone at its best: rate and round by validation loss |
| `local_tri` | the same shape alone at its best: what is owed to it, not to others |
| `pooled_lora` | plain LoRA at its best on the rows of all: what data sharing would give |
| `h2tune` | the configuration itself |
| `h2tune_permuted`, `h2tune_noise` | negative controls: what is owed to averaging as such |
| `h2tune_ungauged` | random factors; masks, alignment and factors are trained, as published |
| `h2tune_mean` | the published aggregation |
| `h2tune_shared_only` | private factors stay as the gauge made them |
| `h2tune_no_alternation` | shared and private parts train together in every step |
| `h2tune_trained_alignment` | layers find their slots by training |
"""

from enum import StrEnum
from typing import Any, assert_never

from pydantic import BaseModel, ConfigDict, Field

from backend.contracts.params.h2tune import H2TuneParams
from worker.federated.experiments.arm_kinds import (
    Arm,
    FederatedArm,
    GaugeSource,
    LocalArm,
    PooledArm,
    UntrainedArm,
)

EVERY_ROUND = 1000
"""As a number of joint rounds: more than any experiment has."""


class StandardArm(StrEnum):
    """Names as they appear in files and tables."""

    UNTRAINED = "untrained"
    LOCAL_ONLY = "local_only"
    LOCAL_LORA = "local_lora"
    LOCAL_TRI = "local_tri"
    POOLED_LORA = "pooled_lora"
    H2TUNE = "h2tune"
    PERMUTED = "h2tune_permuted"
    NOISE = "h2tune_noise"
    UNGAUGED = "h2tune_ungauged"
    MEAN = "h2tune_mean"
    SHARED_ONLY = "h2tune_shared_only"
    NO_ALTERNATION = "h2tune_no_alternation"
    TRAINED_ALIGNMENT = "h2tune_trained_alignment"


class StandardArms(BaseModel):
    """Which of them to run, and the configuration that they vary."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    names: tuple[StandardArm, ...] = Field(min_length=1)
    h2tune: H2TuneParams
    gauge: GaugeSource = "none"
    lora_learning_rates: tuple[float, ...] = Field(
        (3e-4, 1e-3, 3e-3),
        min_length=1,
        description="`local_lora` and `pooled_lora` choose among these",
    )
    middle_learning_rates: tuple[float, ...] = Field(
        (2.5e-3, 5e-3), min_length=1, description="`local_tri` chooses among these"
    )

    def arms(self, learning_rate: float) -> list[Arm]:
        """The chosen arms in the order given; `learning_rate` is the run's."""
        return [self._arm(name, learning_rate) for name in self.names]

    def _arm(self, name: StandardArm, learning_rate: float) -> Arm:
        match name:
            case StandardArm.UNTRAINED:
                return UntrainedArm()
            case StandardArm.LOCAL_ONLY:
                return LocalArm(name=name, learning_rates=(learning_rate,), chosen_by="last_round")
            case StandardArm.LOCAL_LORA:
                return LocalArm(name=name, learning_rates=self.lora_learning_rates)
            case StandardArm.POOLED_LORA:
                return PooledArm(name=name, learning_rates=self.lora_learning_rates)
            case StandardArm.LOCAL_TRI:
                return LocalArm(
                    name=name,
                    strategy=self.h2tune,
                    learning_rates=self.middle_learning_rates,
                    gauge=self.gauge,
                )
            case StandardArm.UNGAUGED:
                rate = self.h2tune.shared_learning_rate
                return FederatedArm(
                    name=name,
                    strategy=H2TuneParams(
                        gauge="none",
                        mask_warmup_rounds=1,
                        train_alignment=True,
                        shared_learning_rate=rate,
                    ),
                )
            case (
                StandardArm.H2TUNE
                | StandardArm.PERMUTED
                | StandardArm.NOISE
                | StandardArm.MEAN
                | StandardArm.SHARED_ONLY
                | StandardArm.NO_ALTERNATION
                | StandardArm.TRAINED_ALIGNMENT
            ):
                strategy = self.h2tune.model_copy(update=_CHANGES[name])
                return FederatedArm(name=name, strategy=strategy, gauge=self.gauge)
            case _:
                assert_never(name)


_CHANGES: dict[StandardArm, dict[str, Any]] = {
    StandardArm.H2TUNE: {},
    StandardArm.PERMUTED: {"control": "permuted"},
    StandardArm.NOISE: {"control": "noise"},
    StandardArm.MEAN: {"aggregation": "mean"},
    StandardArm.SHARED_ONLY: {"shared_fraction": 1.0},
    StandardArm.NO_ALTERNATION: {"joint_rounds": EVERY_ROUND},
    StandardArm.TRAINED_ALIGNMENT: {"train_alignment": True},
}
