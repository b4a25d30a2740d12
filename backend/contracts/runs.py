"""Runs: one execution of one strategy with one seed, and their live state."""

from datetime import datetime
from typing import Any, Literal
from uuid import UUID

from pydantic import ConfigDict, Field, computed_field

from backend.contracts.common import Answer, Request
from backend.contracts.enums import (
    EventKind,
    RoundKind,
    RoundStatus,
    RunStatus,
    SecureStep,
    UpdateStatus,
)
from backend.contracts.metrics import MetricName
from backend.contracts.privacy import NO_PRIVACY, PrivacySettings
from backend.contracts.refusals import Refusal
from backend.contracts.robustness import TRUSTING, Robustness
from backend.contracts.round_policy import EVERYBODY, RoundPolicy
from backend.contracts.stopping import StopRule
from backend.contracts.strategies import Params, title_of
from backend.contracts.training import TrainingConfig


class RunCreate(Request):
    """A new run of a federation; it starts with `POST /runs/{id}/start`."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "strategy": {"name": "h2tune"},
                    "num_rounds": 5,
                    "seed": 0,
                    "training": {"local_steps": 40, "learning_rate": 0.003},
                }
            ]
        }
    )

    strategy: Params
    num_rounds: int = Field(5, ge=1, le=10_000)
    seed: int = Field(0, ge=0, lt=2**31)
    training: TrainingConfig = TrainingConfig()
    privacy: PrivacySettings = NO_PRIVACY
    robustness: Robustness = TRUSTING
    round_policy: RoundPolicy = EVERYBODY
    stop_when: StopRule | None = Field(
        None, description="deliver before the last round if this holds; empty: never"
    )


class RunClone(Request):
    """A new run with the settings of another."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"seed": 1}]})

    seed: int | None = Field(None, ge=0, lt=2**31, description="empty: the same")


class Run(Answer):
    """A run with its state."""

    id: UUID
    federation_id: UUID
    strategy: Params
    num_rounds: int
    seed: int
    training: TrainingConfig
    privacy: PrivacySettings = NO_PRIVACY
    robustness: Robustness = TRUSTING
    round_policy: RoundPolicy = EVERYBODY
    stop_when: StopRule | None = None
    probe_set_sha256: str | None = Field(
        None,
        description="hash of the probe texts that its federation had when the run was made; empty: "
        "the built-in ones",
    )
    stopped_after: int | None = Field(
        None, description="the last training round, where the run stopped before `num_rounds`"
    )
    status: RunStatus
    round_number: int = Field(description="the current round; 0 before the first")
    error: str | None = Field(description="why the run failed, for people")
    queue_position: int | None = Field(
        None,
        description="its place among the runs that wait for a worker, or for their turn in a "
        "comparison; 1 is next, empty: it does not wait",
    )
    comparison_id: UUID | None = Field(None, description="the comparison that owns the run")
    arm: str | None = Field(None, description="name of the comparison's arm")
    created_at: datetime
    started_at: datetime | None
    ended_at: datetime | None
    cleared_at: datetime | None = Field(
        None, description="when retention gave up plans and updates of its rounds"
    )
    copied_from: UUID | None = Field(
        None, description="the run of which this is an imported copy, which cannot be resumed"
    )

    @computed_field(  # type: ignore[prop-decorator]  # mypy knows no decorated properties
        description="the strategy for people, and whether it ran inside groups or as a control"
    )
    @property
    def strategy_title(self) -> str:
        """Such as `FedIT, in groups of equal architecture and rank`."""
        return title_of(self.strategy)


class ClientUpdate(Answer):
    """One client's part of one round."""

    id: UUID
    client_id: UUID
    client_name: str
    status: UpdateStatus
    num_attempts: int
    stage: str | None = Field(description="what it is doing: loading, training, evaluating, ...")
    step: int
    num_steps: int
    error: str | None
    started_at: datetime | None
    ended_at: datetime | None
    aggregated_in: int | None = Field(
        None, description="number of the round whose aggregation used it; later than its own: stale"
    )
    late_at: datetime | None = Field(
        None, description="when its result came too late to be used in any round"
    )
    key_fingerprint: str | None = Field(None, description="of the client's key that signed it")


class SecureProgress(Answer):
    """How far the exchanges of a round with secure aggregation are."""

    step: SecureStep
    session: int = Field(description="counts up when a failed round begins anew")
    threshold: int = Field(description="so many clients must tell shares before the sum opens")
    num_done: int = Field(description="clients that have sent the message of this step")
    num_expected: int
    waiting_for: list[str] = Field(description="names of the clients whose message is missing")


class Round(Answer):
    """One round with every client's part in it."""

    round_number: int
    kind: RoundKind
    status: RoundStatus
    opened_at: datetime
    closed_at: datetime | None
    quorum: int | None = Field(None, description="updates that it needs; empty: of all its clients")
    deadline_at: datetime | None = None
    report: dict[str, float]
    secure: SecureProgress | None = Field(None, description="with secure aggregation only")
    client_updates: list[ClientUpdate]


class MetricPoint(Answer):
    """One measured value."""

    id: int
    client_id: UUID | None
    round_number: int
    scope: Literal["round", "progress"] = Field(
        description="round: one value per client and round. progress: within a round"
    )
    step: int | None
    name: MetricName
    value: float
    created_at: datetime


class Event(Answer):
    """Something that happened in a run, as a sentence and as data."""

    id: int
    run_id: UUID
    kind: EventKind
    client_id: UUID | None
    round_number: int | None
    message: str
    data: dict[str, Any]
    created_at: datetime


class LiveRun(Answer):
    """What changed since a cursor, and the current state; poll with `after=cursor`."""

    run: Run
    rounds: list[Round] = Field(
        description="the current round and those that changed since; all rounds when `after` is 0"
    )
    metrics: list[MetricPoint]
    events: list[Event]
    refusals: list[Refusal] = Field([], description="clients that do not take part in the run")
    cursor: int


class Adapter(Answer):
    """A client's own adapter that can be downloaded."""

    run_id: UUID
    client_id: UUID
    client_name: str
    size_bytes: int
    sha256: str
    created_at: datetime
