"""Comparisons: several strategies times several seeds over the same clients, data and steps."""

from datetime import datetime
from typing import Annotated, Any, Self, get_args
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from backend.contracts.common import Answer, Name, Request
from backend.contracts.enums import RunStatus, StrategyName
from backend.contracts.evidence import Interval, Spread, Verdict
from backend.contracts.params.lora import LocalOnlyParams
from backend.contracts.privacy import NO_PRIVACY, PrivacySettings
from backend.contracts.robustness import TRUSTING, Robustness
from backend.contracts.strategies import Params, is_grouped
from backend.contracts.training import TrainingConfig

MAX_RUNS = 500
UNTRAINED = "untrained"
ALONE = "alone"
"""The control in which clients share nothing."""
STOPPED_EARLY = "stopped_early"
"""The control that is local training again, delivered from the round that validation likes best."""

MAX_LABEL = 40

Label = Annotated[
    str,
    StringConstraints(
        strip_whitespace=True,
        min_length=1,
        max_length=MAX_LABEL,
        pattern=r"^[a-z0-9]+(_[a-z0-9]+)*$",
    ),
]
"""Lower case words joined by underscores."""

Seed = Annotated[int, Field(ge=0, lt=2**31)]


class ArmTraining(BaseModel):
    """Where one arm trains differently from the others; everything else is equal for all.

    Only the learning rate may differ, because a baseline is fair at the rate that serves it best,
    while other settings change how much work an arm may do.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    learning_rate: float | None = Field(
        None,
        gt=0,
        le=1,
        title="Learning rate of this arm",
        description="Of AdamW. Empty: that of the comparison.",
    )

    def applied_to(self, common: TrainingConfig) -> TrainingConfig:
        """The comparison's local training with what this arm changes in it."""
        if self.learning_rate is None:
            return common
        return common.model_copy(update={"learning_rate": self.learning_rate})


SAME_TRAINING = ArmTraining()


class ArmCreate(Request):
    """One strategy of a comparison; a label tells two arms of one strategy apart."""

    strategy: Params
    label: Label | None = Field(
        None, description="added to the strategy's name; needed where a strategy appears twice"
    )
    privacy: PrivacySettings = NO_PRIVACY
    robustness: Robustness = TRUSTING
    training: ArmTraining = SAME_TRAINING

    @property
    def name(self) -> str:
        """The strategy's name, and the label if there is one, such as `h2tune_permuted`."""
        name = self.strategy.name.value
        return name if self.label is None else f"{name}_{self.label}"


class ComparisonCreate(Request):
    """A new comparison of a federation; it starts with `POST /comparisons/{id}/start`."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "name": "Does sharing pay?",
                    "arms": [{"strategy": {"name": "h2tune"}}],
                    "controls": True,
                    "seeds": [0, 1, 2],
                    "num_rounds": 5,
                    "training": {"local_steps": 40, "learning_rate": 0.003},
                }
            ]
        }
    )

    name: Name
    arms: list[ArmCreate] = Field(min_length=1, max_length=50)
    seeds: list[Seed] = Field(
        min_length=1,
        max_length=50,
        description="each arm runs once with each; two or more give a spread, five or more a "
        "useful interval",
    )
    num_rounds: int = Field(5, ge=1, le=10_000)
    training: TrainingConfig = TrainingConfig()
    controls: bool = Field(
        False,
        description="adds what a gain must be measured against: local_only, every arm of it also "
        "stopped early by validation loss, and for every arm whose strategy has controls the same "
        "with permuted and with noisy shared matrices, and without sharing",
    )

    @model_validator(mode="after")
    def _has_no_twins(self) -> Self:
        twins = sorted({seed for seed in self.seeds if self.seeds.count(seed) > 1})
        if twins:
            raise ValueError(f"seed {twins[0]} is named twice; name each seed once")
        names = [arm.name for arm in self.all_arms()]
        same = sorted({name for name in names if names.count(name) > 1})
        if same:
            raise ValueError(
                f"two arms are named {same[0]}; give each arm of one strategy its own label"
            )
        if len(names) * len(self.seeds) > MAX_RUNS:
            raise ValueError(
                f"{len(names)} arms times {len(self.seeds)} seeds are more than {MAX_RUNS} runs; "
                "leave out arms or seeds"
            )
        return self

    def all_arms(self) -> list[ArmCreate]:
        """The arms as asked, with the controls behind them if those are wanted."""
        if not self.controls:
            return self.arms
        added = [control for arm in self.arms for control in _controls_of(arm)]
        if all(arm.strategy.name is not StrategyName.LOCAL_ONLY for arm in self.arms):
            local_only = ArmCreate(strategy=LocalOnlyParams())
            added += [local_only, *_controls_of(local_only)]
        asked = {_content(arm) for arm in self.arms}
        return [*self.arms, *(arm for arm in added if _content(arm) not in asked)]


def _controls_of(arm: ArmCreate) -> list[ArmCreate]:
    if isinstance(arm.strategy, LocalOnlyParams):
        is_plain = arm.strategy.guard == "off"
        return [_varied(arm, STOPPED_EARLY, "guard", "validation")] if is_plain else []
    field = type(arm.strategy).model_fields.get("control")
    if field is None or getattr(arm.strategy, "control", None) != "none":
        return []
    return [
        _varied(arm, control, "control", control)
        for control in get_args(field.annotation)
        # Alone there is no sum that could hide an update, so a protected arm has no such control.
        if control != "none" and not (control == ALONE and arm.privacy != NO_PRIVACY)
    ]


def _varied(arm: ArmCreate, label: str, field: str, value: str) -> ArmCreate:
    """The arm with one parameter changed, and a label that says so."""
    longest = MAX_LABEL - len(f"_{label}")
    if arm.label is not None and len(arm.label) > longest:
        raise ValueError(
            f"label {arm.label!r} has {len(arm.label)} characters, and its control is named "
            f"'..._{label}': shorten it to {longest}, or leave out the controls"
        )
    return ArmCreate(
        strategy=arm.strategy.model_copy(update={field: value}),
        label=label if arm.label is None else f"{arm.label}_{label}",
        privacy=arm.privacy,
        robustness=TRUSTING if label == ALONE else arm.robustness,
        training=arm.training,
    )


def _content(arm: ArmCreate) -> str:
    return arm.model_dump_json(exclude={"label"})


class Arm(Answer):
    """One strategy of a comparison under its name."""

    name: str
    strategy: Params
    privacy: PrivacySettings = NO_PRIVACY
    robustness: Robustness = TRUSTING
    training: ArmTraining = SAME_TRAINING

    @property
    def control(self) -> str:
        """`permuted`, `noise` or `alone` for a control, else `none`."""
        return str(getattr(self.strategy, "control", "none"))

    @property
    def is_local(self) -> bool:
        """Whether no client learns from another."""
        return self.strategy.name is StrategyName.LOCAL_ONLY or self.control == ALONE

    @property
    def is_stopped_early(self) -> bool:
        """Whether clients that are alone deliver the round that their validation likes best."""
        return self.is_local and getattr(self.strategy, "guard", "off") == "validation"

    @property
    def title(self) -> str:
        """The name as every table shows it: groups and early stopping are always said."""
        if is_grouped(self.strategy):
            return f"{self.name} (in groups)"
        if self.is_stopped_early and not self.name.endswith(STOPPED_EARLY):
            return f"{self.name} (stopped early)"
        return self.name

    def is_control_of(self, other: "Arm") -> bool:
        """Whether this is `other` with its shared matrices spoilt, and nothing else different."""
        if self.control == "none" or other.control != "none":
            return False
        return _without_control(self) == _without_control(other)


def _without_control(arm: Arm) -> dict[str, Any]:
    return arm.model_dump(exclude={"name": True, "strategy": {"control"}})


class Comparison(Answer):
    """A comparison with its state, which follows from the states of its runs."""

    id: UUID
    federation_id: UUID
    name: str
    arms: list[Arm]
    seeds: list[int]
    num_rounds: int
    training: TrainingConfig
    status: RunStatus = Field(
        description="completed: every run has ended, and one or more have a result"
    )
    num_runs: dict[RunStatus, int] = Field(description="how many runs are in each state")
    created_at: datetime
    started_at: datetime | None
    ended_at: datetime | None

    @property
    def num_ended(self) -> int:
        """Runs that will change no more."""
        return sum(count for status, count in self.num_runs.items() if status.is_terminal)


class ComparisonRun(Answer):
    """Where one arm with one seed stands."""

    run_id: UUID
    arm: str
    seed: int
    status: RunStatus
    round_number: int
    error: str | None = Field(description="why it has no result, for people")


class Accuracies(Answer):
    """Accuracies in [0, 1] over the seeds of the completed runs; null: none was measured."""

    untrained: Spread | None = Field(description="before the first round")
    after_training: Spread | None = Field(description="after local training in the last round")
    delivered: Spread | None = Field(description="of the adapters after the last aggregation")


class ClientResult(Accuracies):
    """What one client reached in one arm."""

    client_id: UUID
    client_name: str


class ArmResult(Answer):
    """What one arm reached; only completed runs count."""

    name: str
    title: str = Field(
        description="the name, with `(in groups)` where sharing stays in groups, and "
        "`(stopped early)` where a local arm is and the name does not say so"
    )
    strategy: Params
    is_control: bool = Field(description="a control: no candidate for use")
    seeds: list[int] = Field(description="of the completed runs")
    clients: list[ClientResult]
    overall: Accuracies = Field(description="of the mean over clients, which is taken per seed")
    bytes_up: Spread | None = Field(description="payload of all clients and rounds of a run")
    bytes_down: Spread | None
    seconds_train: Spread | None = Field(description="training of all clients and rounds of a run")
    over_local_only: Interval | None = Field(
        description="delivered accuracy minus that of local_only, paired by seed"
    )
    gain: Interval | None = Field(
        description="delivered accuracy minus that of the best local arm, paired by seed"
    )
    over_control: Interval | None = Field(
        description="delivered accuracy minus that of its permuted control, paired by seed"
    )
    verdict: Verdict | None = Field(description="null for local arms and controls")
    sentence: str = Field(description="the verdict in words; empty without one")
    is_on_bytes_front: bool = Field(description="no other arm is as good for fewer bytes")
    is_on_seconds_front: bool = Field(description="no other arm is as good for less training time")


class ComparisonResults(Answer):
    """What a comparison has found so far."""

    comparison: Comparison
    best_local: str | None = Field(
        description="the best arm in which clients are alone, or `untrained`"
    )
    arms: list[ArmResult]
    runs: list[ComparisonRun]


class ResultRow(Answer):
    """One client in one arm with one seed, as in the CSV export."""

    arm: str
    title: str
    strategy: str
    seed: int
    run_id: UUID
    status: RunStatus
    client_id: UUID
    client_name: str
    accuracy_untrained: float | None
    accuracy_after_training: float | None
    accuracy_delivered: float | None
    bytes_up: float | None
    bytes_down: float | None
    seconds_train: float | None
    error: str | None
