"""Clients with decoders and public data: which rows they get, and what is wrong with bad input."""

import json
from pathlib import Path

import pytest

from backend.contracts.base_models import BaseModelRef
from backend.contracts.enums import TaskKind
from worker.federated.errors import InvalidConfigError
from worker.federated.experiments.config import DecoderMember, Probes, Setting
from worker.federated.experiments.decoders import decoder_client, decoder_probes

LLAMA = DecoderMember(model=BaseModelRef(source="builtin", id="tiny_llama"), task="math", rank=4)


def _setting(**changes: object) -> Setting:
    values: dict[str, object] = {
        "name": "small",
        "num_train": 3,
        "num_validation": 1,
        "num_test": 2,
        "probes": Probes(num_texts=8),
        "members": (LLAMA,),
    }
    return Setting.model_validate(values | changes)


def _write(folder: Path, task: str, **row: object) -> None:
    for split, count in (("train", 20), ("test", 5)):
        lines = [
            json.dumps({"task": task, "question": f"{split} {n:02}", **row}) for n in range(count)
        ]
        (folder / f"math_{split}.jsonl").write_text("\n".join(lines))


def test_clients_of_a_task_share_the_test_rows_and_nothing_else(tmp_path: Path) -> None:
    _write(tmp_path, "blank_fill", answer="We add. The answer is 7", final="7")
    first, second = (
        decoder_client(_setting(), LLAMA, f"c{n}", n, 0, tmp_path, None) for n in range(2)
    )
    assert first.data.task is TaskKind.FILL_IN
    assert first.data.test == second.data.test
    assert [len(first.data.train), len(first.data.validation), len(first.data.test)] == [3, 1, 2]
    rows = [row.question for c in (first, second) for row in (*c.data.train, *c.data.validation)]
    probes = decoder_probes(_setting(), "math", tmp_path, 8)
    assert len(set(rows)) == 8
    assert not any(row in probe for row in rows for probe in probes)
    assert {row.answer for row in first.data.train} == {"7"}  # the result, not the way to it


def test_a_choice_is_answered_by_its_letter(tmp_path: Path) -> None:
    _write(tmp_path, "choice", answer="So it is B", final="B", label=1, options=["1", "2"])
    client = decoder_client(_setting(), LLAMA, "c", 0, 0, tmp_path, None)
    assert client.data.task is TaskKind.CHOICE
    assert (client.data.train[0].answer, client.data.train[0].options) == ("B", ["1", "2"])


def test_rows_that_are_too_long_are_left_out(tmp_path: Path) -> None:
    _write(tmp_path, "ssc", answer="Yes", label=1)
    with pytest.raises(InvalidConfigError, match="has 0 training rows of at most 10 characters"):
        decoder_client(_setting(max_characters=10), LLAMA, "c", 0, 0, tmp_path, None)


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidConfigError, match=r"'math_train.jsonl' cannot be read"):
        decoder_client(_setting(), LLAMA, "c", 0, 0, tmp_path, None)
    _write(tmp_path, "ssc", answer="Yes", label=1)
    folder = LLAMA.model_copy(update={"model": BaseModelRef(source="folder", id="mine")})
    with pytest.raises(InvalidConfigError, match="give --models-dir"):
        decoder_client(_setting(), folder, "c", 0, 0, tmp_path, None)
