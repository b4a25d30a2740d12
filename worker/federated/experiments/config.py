"""What an experiment file says: a grid of settings, arms and seeds (TOML)."""

import tomllib
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from backend.contracts.base_models import BaseModelRef, BuiltinModelName
from backend.contracts.datasets import BuiltinTaskName
from backend.contracts.training import TrainingConfig
from worker.federated.errors import InvalidConfigError
from worker.federated.experiments.arm_kinds import Arm
from worker.federated.experiments.standard_arms import StandardArms
from worker.federated.probes import ProbeUnit


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class EncoderMember(_Part):
    """A client with a real encoder, cut to some depth, and a public classification task."""

    kind: Literal["encoder"] = "encoder"
    layers: int = Field(ge=1, description="the first so many are kept")
    path: str | None = Field(
        None, description="folder below --models-dir; none: the packaged all-MiniLM-L6-v2"
    )
    dtype: Literal["float32", "bfloat16"] = Field(
        "float32", description="of the frozen weights; bfloat16 is faster where it is in hardware"
    )
    task: str = Field(description="name of the data files, such as sst2")
    rank: int = Field(ge=1)

    @property
    def model_name(self) -> str:
        """As it appears in tables."""
        return self.path or "all-MiniLM-L6-v2"


class BuiltinMember(_Part):
    """A client with a built-in causal model and a built-in task."""

    kind: Literal["builtin"] = "builtin"
    model: BuiltinModelName
    task: BuiltinTaskName
    rank: int = Field(ge=1)

    @property
    def model_name(self) -> str:
        """As it appears in tables."""
        return self.model.value


class DecoderMember(_Part):
    """A client with any causal model and a public task in JSON lines."""

    kind: Literal["decoder"] = "decoder"
    model: BaseModelRef = Field(description="the id of a folder is relative to --models-dir")
    task: str = Field(description="name of the data files, such as sst2")
    rank: int = Field(ge=1)

    @property
    def model_name(self) -> str:
        """As it appears in tables."""
        return self.model.id


Member = Annotated[EncoderMember | BuiltinMember | DecoderMember, Field(discriminator="kind")]


class Probes(_Part):
    """Public texts for the probe gauge."""

    unit: ProbeUnit = "text"
    num_texts: int = Field(600, ge=8)
    task: str | None = Field(
        None, description="of another domain: its file prefix; empty: of the clients' own tasks"
    )


class Setting(_Part):
    """Who takes part, and how much data each has."""

    name: str
    global_rank: int = Field(16, ge=1)
    num_train: int = Field(32, ge=1)
    num_validation: int = Field(32, ge=1)
    num_test: int = Field(400, ge=1)
    max_characters: int = Field(
        2_000, ge=1, description="of prompt and answer; decoders leave longer rows out"
    )
    members: tuple[Member, ...] = Field(min_length=1)
    probes: Probes = Probes()
    num_rounds: int | None = Field(None, ge=1, description="in place of the file's")
    local_steps: int | None = Field(None, ge=1, description="in place of the file's")


class Experiment(_Part):
    """A grid: every arm in every setting with every seed."""

    num_rounds: int = Field(20, ge=1)
    training: TrainingConfig
    settings: tuple[Setting, ...] = Field(min_length=1)
    standard: StandardArms | None = None
    arms: tuple[Arm, ...] = Field((), description="beside the standard ones")
    seeds: int = Field(3, ge=1, description="how many, from 0")

    @model_validator(mode="after")
    def _has_arms_to_tell_apart(self) -> Self:
        names = [arm.name for arm in self.all_arms]
        if not names:
            raise ValueError("there is no arm: add [standard] or [[arms]]")
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"two arms are named {twice[0]!r}: rename one")
        return self

    def within(self, setting: Setting) -> Self:
        """The experiment with what a setting has in place of the file's rounds and steps."""
        steps = setting.local_steps or self.training.local_steps
        return self.model_copy(
            update={
                "num_rounds": setting.num_rounds or self.num_rounds,
                "training": self.training.model_copy(update={"local_steps": steps}),
            }
        )

    @property
    def all_arms(self) -> tuple[Arm, ...]:
        """Standard arms first, then the others."""
        standard = self.standard.arms(self.training.learning_rate) if self.standard else []
        return (*standard, *self.arms)


def load_experiment(path: Path) -> Experiment:
    """Reads an experiment file.

    Raises:
        InvalidConfigError: the file is missing, no TOML, or says something impossible.
    """
    try:
        return Experiment.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except (OSError, tomllib.TOMLDecodeError, ValidationError) as error:
        raise InvalidConfigError(
            f"The experiment file {path.name!r} is unusable: {error}"
        ) from error
