"""Clients with encoders from a folder, on any classification task in JSON lines."""

import json
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertModel

from backend.contracts.training import TrainingConfig
from tests.worker.federated.tiny import VOCABULARY_SIZE, make_tokenizer
from worker.federated.errors import InvalidConfigError
from worker.federated.experiments.config import EncoderMember, Probes, Setting
from worker.federated.experiments.members import make_clients, probe_texts
from worker.federated.objectives.encoder import COSINE_SCALE

NUM_PROBES = 8


@pytest.fixture
def models(tmp_path: Path) -> Path:
    config = BertConfig(
        vocab_size=VOCABULARY_SIZE,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=32,
    )
    folder = tmp_path / "models" / "small"
    BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return tmp_path / "models"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    for part, count in (("train", 30), ("test", 6)):
        singles = [
            {"text_a": f"a story {number}", "answer": ("sad", "happy")[number % 2]}
            for number in range(count)
        ]
        pairs = [
            {
                "text_a": f"a film {number}",
                "text_b": f"the film {number}",
                "answer": ("No", "Yes")[number % 2],
            }
            for number in range(count)
        ]
        for task, rows in (("moods", singles), ("alike", pairs)):
            text = "\n".join(json.dumps(row) for row in rows)
            (folder / f"{task}_{part}.jsonl").write_text(text)
    return folder


def setting(*members: EncoderMember, num_train: int = 4) -> Setting:
    return Setting(
        name="s",
        num_train=num_train,
        num_validation=2,
        num_test=6,
        members=members,
        probes=Probes(num_texts=NUM_PROBES),
    )


def member(task: str, *, layers: int = 2, path: str | None = "small") -> EncoderMember:
    return EncoderMember(layers=layers, path=path, dtype="bfloat16", task=task, rank=2)


def test_an_unknown_task_is_told_apart_by_its_answers(models: Path, data: Path) -> None:
    ((_, client),) = make_clients(setting(member("moods")), 0, data, models)
    assert client.model.dtype == torch.bfloat16
    goal = client.objective(TrainingConfig())
    assert goal.head["weight"].shape == (2, 16)
    (batch,) = [goal.collate(goal.encode(client.data.test))]
    logits = goal.target_logits(client.model, batch)
    assert logits.dtype == torch.float32
    assert logits.shape == (6, 2)
    assert logits.abs().max() <= COSINE_SCALE * 1.01


def test_rows_with_two_texts_are_pairs(models: Path, data: Path) -> None:
    ((_, client),) = make_clients(setting(member("alike")), 0, data, models)
    assert set(client.objective(TrainingConfig()).head) == {"scale", "threshold"}


def test_clients_of_a_task_share_no_row_and_no_probe(models: Path, data: Path) -> None:
    parts = setting(member("moods"), member("moods", layers=1), member("alike"))
    (_, first), (_, second), _ = make_clients(parts, 0, data, models)
    assert (len(first.model.encoder.layer), len(second.model.encoder.layer)) == (2, 1)
    used = [
        {row.question for row in (*client.data.train, *client.data.validation)}
        for client in (first, second)
    ]
    assert not used[0] & used[1]
    probes = set(probe_texts(parts, data))
    assert len(probes) == NUM_PROBES
    assert not probes & (used[0] | used[1])


def test_another_seed_gives_other_training_rows_and_the_same_test(models: Path, data: Path) -> None:
    (left,), (right,) = (
        make_clients(setting(member("moods")), seed, data, models) for seed in (0, 1)
    )
    assert left[1].data.train != right[1].data.train
    assert left[1].data.test == right[1].data.test


def test_what_is_missing_is_named(models: Path, data: Path) -> None:
    with pytest.raises(InvalidConfigError, match="give --models-dir"):
        make_clients(setting(member("moods")), 0, data)
    with pytest.raises(InvalidConfigError, match="'nowhere'"):
        make_clients(setting(member("moods", path="nowhere")), 0, data, models)
    with pytest.raises(InvalidConfigError, match=r"'other_train\.jsonl' cannot be read"):
        make_clients(setting(member("other")), 0, data, models)
    with pytest.raises(InvalidConfigError, match="too few for 1 clients of 42"):
        make_clients(setting(member("moods"), num_train=40), 0, data, models)
