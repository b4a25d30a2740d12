"""A client's data: rows of JSON lines, and references to built-in or uploaded data sets."""

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from backend.contracts.enums import TaskKind

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")


class Example(BaseModel):
    """One row of a data set; unknown fields are kept out of training and allowed."""

    model_config = ConfigDict(frozen=True)

    question: str = Field(min_length=1, max_length=100_000)
    answer: str = Field(min_length=1, max_length=100_000)
    split: Split
    options: list[str] | None = Field(
        None, description="the choices, for `choice`; the answer is then a letter from A on"
    )
    final: str | None = Field(
        None, description="what to score for `fill_in` and `program`: the number; default: answer"
    )


class BuiltinTaskName(StrEnum):
    """Seeded task generators in `worker/federated/tasks/generators.py`."""

    ARITHMETIC_FILL_IN = "arithmetic_fill_in"
    ARITHMETIC_CHOICE = "arithmetic_choice"
    ARITHMETIC_PROGRAM = "arithmetic_program"
    STORY_CLASSIFICATION = "story_classification"


BUILTIN_TASK_KINDS: dict[BuiltinTaskName, TaskKind] = {
    BuiltinTaskName.ARITHMETIC_FILL_IN: TaskKind.FILL_IN,
    BuiltinTaskName.ARITHMETIC_CHOICE: TaskKind.CHOICE,
    BuiltinTaskName.ARITHMETIC_PROGRAM: TaskKind.PROGRAM,
    BuiltinTaskName.STORY_CLASSIFICATION: TaskKind.CLASSIFICATION,
}


class BuiltinTaskInfo(BaseModel):
    """A task generator, as `GET /builtin-tasks` lists it."""

    model_config = ConfigDict(frozen=True)

    name: BuiltinTaskName
    kind: TaskKind


class BuiltinDataset(BaseModel):
    """Data made by a seeded generator; the same values give the same rows on every machine."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: Literal["builtin"] = "builtin"
    task: BuiltinTaskName
    seed: int = Field(0, ge=0, lt=2**31)
    num_train: int = Field(64, ge=1, le=10_000)
    num_validation: int = Field(32, ge=0, le=10_000)
    num_test: int = Field(128, ge=1, le=10_000)


class UploadedDataset(BaseModel):
    """Rows that were uploaded to the platform as JSON lines."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: Literal["uploaded"] = "uploaded"
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    num_train: int = Field(ge=1)
    num_validation: int = Field(ge=0)
    num_test: int = Field(ge=1)


DatasetRef = Annotated[BuiltinDataset | UploadedDataset, Field(discriminator="source")]
