"""Makes the clients of a setting: models, disjoint training slices, one test set per task."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from random import Random
from typing import Literal

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from backend.contracts.base_models import BaseModelRef
from backend.contracts.datasets import BUILTIN_TASK_KINDS, BuiltinDataset, Example, Split
from backend.contracts.enums import TaskKind
from backend.contracts.training import TrainingConfig
from worker.federated.base_models import load_base_model
from worker.federated.encoders import load_encoder
from worker.federated.errors import InvalidConfigError
from worker.federated.experiments.config import (
    BuiltinMember,
    DecoderMember,
    EncoderMember,
    Member,
    Setting,
)
from worker.federated.experiments.decoders import decoder_client, decoder_probes
from worker.federated.objectives.encoder import EncoderSettings, pair_objective, text_objective
from worker.federated.objectives.objective import Objective
from worker.federated.simulation import SimulatedClient
from worker.federated.tasks.generators import generate
from worker.federated.tasks.prompts import build_prompt
from worker.federated.types import ClientData

LABEL_TEXTS = {
    "sst2": {"Negative": "This movie is terrible.", "Positive": "This movie is wonderful."},
}
"""Single-sentence tasks: answer -> a sentence that says it. Other tasks: the answers themselves."""

PAIR_LABELS = ("No", "Yes")
"""Tasks of two sentences: the answers for "far apart" and "close"."""

TEST_SEED = 12_345
"""Of built-in test rows: the same for all clients and seeds of a task."""


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a public data file, as far as encoders need it."""

    text: str  # the two texts of a pair on two lines
    answer: str


def make_clients(
    setting: Setting, seed: int, data_dir: Path | None, models_dir: Path | None = None
) -> list[tuple[Member, SimulatedClient]]:
    """The clients of one setting; equal seeds give equal clients.

    Args:
        setting: who takes part.
        seed: decides the training and validation slices, not the test sets.
        data_dir: holds `<task>_train.jsonl` and `<task>_test.jsonl`; needed for public tasks.
        models_dir: where models given as folders lie.

    Raises:
        InvalidConfigError: data are missing or too few.
    """
    clients = []
    for number, member in enumerate(setting.members):
        client_id = f"client-{number}"
        if isinstance(member, BuiltinMember):
            client = _builtin_client(setting, member, client_id, seed * 100 + number)
        else:
            files = _files(data_dir)
            before = sum(other.task == member.task for other in setting.members[:number])
            if isinstance(member, EncoderMember):
                client = _encoder_client(
                    setting, member, client_id, before, seed, files, models_dir
                )
            else:
                client = decoder_client(setting, member, client_id, before, seed, files, models_dir)
        clients.append((member, client))
    return clients


def pooled(clients: Sequence[tuple[Member, SimulatedClient]]) -> list[SimulatedClient]:
    """The same clients, each with the training and validation rows of all that have its task."""
    found = []
    for member, client in clients:
        peers = [other.data for same, other in clients if same.task == member.task]
        data = replace(
            client.data,
            train=tuple(row for peer in peers for row in peer.train),
            validation=tuple(row for peer in peers for row in peer.validation),
        )
        pool = replace(client, data=data)
        if isinstance(member, EncoderMember):
            pool = replace(pool, make_objective=_objective_maker(pool, member.task))
        found.append(pool)
    return found


def probe_texts(setting: Setting, data_dir: Path | None) -> list[str]:
    """Public texts of the setting's tasks: outside all training, validation and test slices."""
    wanted = setting.probes.num_texts
    if setting.probes.task is not None:
        return _last_texts(data_dir, setting.probes.task, wanted)
    tasks = list(dict.fromkeys(member.task for member in setting.members))
    each = -(-wanted // len(tasks))
    texts: list[str] = []
    for member in {member.task: member for member in setting.members}.values():
        if isinstance(member, BuiltinMember):
            dataset = BuiltinDataset(
                task=member.task, seed=TEST_SEED + 1, num_train=each, num_validation=0, num_test=1
            )
            kind = BUILTIN_TASK_KINDS[member.task]
            rows = [row for row in generate(dataset) if row.split == "train"]
            texts += [build_prompt(kind, row) for row in rows]
        elif isinstance(member, DecoderMember):
            texts += decoder_probes(setting, member.task, _files(data_dir), each)
        else:
            texts += _last_texts(data_dir, member.task, each)
    return texts[:wanted]


def _last_texts(data_dir: Path | None, task: str, count: int) -> list[str]:
    """So many texts from the end of a task's training file, where no client's rows come from."""
    rows = _read(_files(data_dir), task, "train")[-count:]
    return [text for row in rows for text in row.text.split("\n")][:count]


def _builtin_client(
    setting: Setting, member: BuiltinMember, client_id: str, seed: int
) -> SimulatedClient:
    ref = BaseModelRef(source="builtin", id=member.model)
    model, tokenizer = _builtin(ref)
    own = generate(
        BuiltinDataset(
            task=member.task,
            seed=seed,
            num_train=setting.num_train,
            num_validation=setting.num_validation,
            num_test=1,
        )
    )
    common = generate(
        BuiltinDataset(
            task=member.task,
            seed=TEST_SEED,
            num_train=1,
            num_validation=0,
            num_test=setting.num_test,
        )
    )
    data = ClientData(
        task=BUILTIN_TASK_KINDS[member.task],
        train=tuple(row for row in own if row.split == "train"),
        validation=tuple(row for row in own if row.split == "validation"),
        test=tuple(row for row in common if row.split == "test"),
    )
    return SimulatedClient(client_id, model, tokenizer, data, member.rank, float(member.rank))


def _encoder_client(
    setting: Setting,
    member: EncoderMember,
    client_id: str,
    number_in_task: int,
    seed: int,
    data_dir: Path,
    models_dir: Path | None,
) -> SimulatedClient:
    size = setting.num_train + setting.num_validation
    rows = list(_read(data_dir, member.task, "train")[: -setting.probes.num_texts])
    Random(f"{member.task}/{seed}").shuffle(rows)  # noqa: S311 - data, no secret
    own = rows[number_in_task * size : (number_in_task + 1) * size]
    if (number_in_task + 1) * size > len(rows):
        raise InvalidConfigError(
            f"Task {member.task!r} has {len(rows)} training rows beside the probes, too few for "
            f"{number_in_task + 1} clients of {size}: lower num_train or num_validation."
        )
    data = ClientData(
        task=TaskKind.CLASSIFICATION,
        train=_examples(own[: setting.num_train], "train"),
        validation=_examples(own[setting.num_train :], "validation"),
        test=_examples(_read(data_dir, member.task, "test")[: setting.num_test], "test"),
    )
    folder = None if member.path is None else _folder(member.path, models_dir)
    model, tokenizer = _encoder(member.layers, folder, _DTYPES[member.dtype])
    client = SimulatedClient(client_id, model, tokenizer, data, member.rank, float(member.rank))
    return replace(client, make_objective=_objective_maker(client, member.task))


def _objective_maker(client: SimulatedClient, task: str) -> Callable[[TrainingConfig], Objective]:
    return partial(_encoder_objective, client.model, client.tokenizer, task, client.data)


_encoder = cache(load_encoder)
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def _folder(path: str, models_dir: Path | None) -> Path:
    if models_dir is None:
        raise InvalidConfigError(
            f"Encoder {path!r} is a folder, and where it lies is not said: give --models-dir."
        )
    return models_dir / path


@cache
def _builtin(ref: BaseModelRef) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """One model for all clients that have it: simulations work on copies."""
    return load_base_model(ref, device=torch.device("cpu"), dtype=torch.float32)


def _encoder_objective(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    task: str,
    data: ClientData,
    training: TrainingConfig,
) -> Objective:
    settings = EncoderSettings(training.max_length, max_eval_examples=training.max_eval_examples)
    rows = (*data.train, *data.validation, *data.test)
    if any("\n" in row.question for row in rows):
        return pair_objective(
            model, tokenizer, PAIR_LABELS, data.train, settings, close=PAIR_LABELS[1]
        )
    answers = sorted({row.answer for row in rows})
    label_texts = LABEL_TEXTS.get(task, {answer: answer for answer in answers})
    return text_objective(model, tokenizer, label_texts, settings)


def _files(data_dir: Path | None) -> Path:
    if data_dir is None:
        raise InvalidConfigError(
            "This experiment needs public data files: give their folder with --data-dir."
        )
    return data_dir


@cache
def _read(data_dir: Path, task: str, part: Literal["train", "test"]) -> tuple[Row, ...]:
    path = data_dir / f"{task}_{part}.jsonl"
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise InvalidConfigError(
            f"The data file {path.name!r} cannot be read in {data_dir.name!r}: {error.strerror}. "
            "Correct --data-dir."
        ) from error
    rows = [json.loads(line) for line in lines]
    return tuple(
        Row("\n".join(r[key] for key in ("text_a", "text_b") if r.get(key)), r["answer"])
        for r in rows
    )


def _examples(rows: Sequence[Row], split: Split) -> tuple[Example, ...]:
    return tuple(Example(question=row.text, answer=row.answer, split=split) for row in rows)
