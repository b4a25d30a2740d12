"""Clients with any causal model, from a folder or the hub, and public task data in JSON lines."""

import json
from functools import cache
from itertools import pairwise
from pathlib import Path
from random import Random

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from backend.contracts.base_models import BaseModelRef
from backend.contracts.datasets import Example, Split
from backend.contracts.enums import TaskKind
from worker.federated.base_models import load_base_model
from worker.federated.errors import InvalidConfigError
from worker.federated.experiments.config import DecoderMember, Setting
from worker.federated.simulation import SimulatedClient
from worker.federated.tasks.prompts import build_prompt
from worker.federated.types import ClientData

TASK_KINDS = {
    "blank_fill": TaskKind.FILL_IN,
    "choice": TaskKind.CHOICE,
    "program": TaskKind.PROGRAM,
}
"""Field `task` of a data row -> kind; every other value is a classification."""


def decoder_client(
    setting: Setting,
    member: DecoderMember,
    client_id: str,
    number_in_task: int,
    seed: int,
    data_dir: Path,
    models_dir: Path | None,
) -> SimulatedClient:
    """One client: disjoint training rows within its task, the task's common test rows.

    Args:
        setting: sizes; rows longer than its `max_characters` (prompt and answer) are left out.
        member: which model and task.
        client_id: its name in the results.
        number_in_task: how many clients of the same task come before it.
        seed: shuffles the training rows.
        data_dir: holds `<task>_train.jsonl` and `<task>_test.jsonl`.
        models_dir: where folders of models lie.

    Raises:
        InvalidConfigError: data are missing or too few, or the model cannot be found.
    """
    kind, rows = _read(data_dir, member.task, "train", setting.max_characters)
    rows = rows[: len(rows) - setting.probes.num_texts] if setting.probes.num_texts else rows
    order = list(rows)
    Random(f"{member.task}/{seed}").shuffle(order)  # noqa: S311 - data, no secret
    size = setting.num_train + setting.num_validation
    bounds = [number_in_task * size, number_in_task * size + setting.num_train]
    bounds.append((number_in_task + 1) * size)
    if bounds[-1] > len(order):
        raise InvalidConfigError(
            f"Task {member.task!r} has {len(order)} training rows of at most "
            f"{setting.max_characters} characters beside the probes, too few for "
            f"{number_in_task + 1} clients of {size}: lower num_train or raise max_characters."
        )
    own, held_out = (order[first:last] for first, last in pairwise(bounds))
    _, test = _read(data_dir, member.task, "test", setting.max_characters)
    model, tokenizer = _load(_located(member.model, models_dir))
    data = ClientData(
        task=kind,
        train=tuple(own),
        validation=tuple(row.model_copy(update={"split": "validation"}) for row in held_out),
        test=tuple(test[: setting.num_test]),
    )
    return SimulatedClient(client_id, model, tokenizer, data, member.rank, float(member.rank))


def decoder_probes(setting: Setting, task: str, data_dir: Path, number: int) -> list[str]:
    """Public prompts of a task: its last training rows, which no client gets."""
    kind, rows = _read(data_dir, task, "train", setting.max_characters)
    return [build_prompt(kind, row) for row in rows[len(rows) - number :]]


def _located(ref: BaseModelRef, models_dir: Path | None) -> BaseModelRef:
    if ref.source != "folder":
        return ref
    if models_dir is None:
        raise InvalidConfigError(
            f"Model {ref.id!r} is a folder, and where it lies is not said: give --models-dir."
        )
    return ref.model_copy(update={"id": str((models_dir / ref.id).resolve())})


@cache
def _load(ref: BaseModelRef) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    return load_base_model(ref, device=device, dtype=dtype)


@cache
def _read(
    data_dir: Path, task: str, split: Split, max_characters: int
) -> tuple[TaskKind, tuple[Example, ...]]:
    """Rows that are short enough, in file order; answers are what is scored where the row says."""
    path = data_dir / f"{task}_{split}.jsonl"
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise InvalidConfigError(
            f"The data file {path.name!r} cannot be read in {data_dir.name!r}: {error.strerror}. "
            "Correct --data-dir."
        ) from error
    rows = [json.loads(line) for line in lines]
    kind = TASK_KINDS.get(rows[0].get("task"), TaskKind.CLASSIFICATION)
    examples = [_example(kind, row, split) for row in rows]
    return kind, tuple(
        example
        for example in examples
        if len(build_prompt(kind, example)) + len(example.answer) <= max_characters
    )


def _example(kind: TaskKind, row: dict[str, str], split: Split) -> Example:
    # Rationales teach a large model to reason; a small one only has room for the result.
    states_result = kind in {TaskKind.FILL_IN, TaskKind.CHOICE}
    return Example.model_validate(
        {
            "question": row["question"],
            "answer": row["final"] if states_result else row["answer"],
            "final": row.get("final") if kind is not TaskKind.CHOICE else None,
            "options": row.get("options") if kind is TaskKind.CHOICE else None,
            "split": split,
        }
    )
