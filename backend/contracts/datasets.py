"""A client's data: rows of JSON lines, and references to built-in or uploaded data sets."""

from enum import StrEnum
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

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
    label_text: str | None = Field(
        None,
        min_length=1,
        max_length=1_000,
        description="for `classification`: a sentence that says the answer, from which text "
        "encoders start; one row of each label is enough. Default: the answer's own words",
    )


class BuiltinTaskName(StrEnum):
    """Built-in data: seeded generators in `worker/federated/tasks/generators.py`, and digits."""

    ARITHMETIC_FILL_IN = "arithmetic_fill_in"
    ARITHMETIC_CHOICE = "arithmetic_choice"
    ARITHMETIC_PROGRAM = "arithmetic_program"
    STORY_CLASSIFICATION = "story_classification"
    HANDWRITTEN_DIGITS = "handwritten_digits"  # not generated: 1,797 small pictures


BUILTIN_TASK_KINDS: dict[BuiltinTaskName, TaskKind] = {
    BuiltinTaskName.ARITHMETIC_FILL_IN: TaskKind.FILL_IN,
    BuiltinTaskName.ARITHMETIC_CHOICE: TaskKind.CHOICE,
    BuiltinTaskName.ARITHMETIC_PROGRAM: TaskKind.PROGRAM,
    BuiltinTaskName.STORY_CLASSIFICATION: TaskKind.CLASSIFICATION,
    BuiltinTaskName.HANDWRITTEN_DIGITS: TaskKind.IMAGE_CLASSIFICATION,
}


NUM_DIGITS: dict[Split, int] = {"train": 1_091, "validation": 346, "test": 360}
"""How many handwritten digits there are."""


class BuiltinTaskInfo(BaseModel):
    """A task generator, as `GET /builtin-tasks` lists it."""

    model_config = ConfigDict(frozen=True)

    name: BuiltinTaskName
    kind: TaskKind


class BuiltinDataset(BaseModel):
    """Data made by a seeded generator; the same values give the same rows on every machine.

    Of handwritten digits, clients with the seeds 0, 1, 2, ... and equal sizes get different
    pictures, until all have been dealt out.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: Literal["builtin"] = "builtin"
    task: BuiltinTaskName
    seed: int = Field(0, ge=0, lt=2**31)
    num_train: int = Field(64, ge=1, le=10_000)
    num_validation: int = Field(32, ge=0, le=10_000)
    num_test: int = Field(128, ge=1, le=10_000)

    @model_validator(mode="after")
    def _enough_digits(self) -> Self:
        if self.task is BuiltinTaskName.HANDWRITTEN_DIGITS:
            wanted = (self.num_train, self.num_validation, self.num_test)
            for (split, limit), number in zip(NUM_DIGITS.items(), wanted, strict=True):
                if number > limit:
                    raise ValueError(
                        f"num_{split} is {number}, but there are {limit} {split} digits: ask for "
                        "fewer"
                    )
        return self


class UploadedDataset(BaseModel):
    """Rows that were uploaded to the platform: JSON lines, or a zip of pictures."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: Literal["uploaded"] = "uploaded"
    format: Literal["json_lines", "image_archive"] = "json_lines"
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    num_train: int = Field(ge=1)
    num_validation: int = Field(ge=0)
    num_test: int = Field(ge=1)


DatasetRef = Annotated[BuiltinDataset | UploadedDataset, Field(discriminator="source")]
