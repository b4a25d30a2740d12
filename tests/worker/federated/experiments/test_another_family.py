"""An encoder of another family: new layers, known words, learned by distillation."""

from functools import partial
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertModel, LlamaModel

from tests.worker.federated.tiny import VOCABULARY_SIZE, make_client, make_tokenizer
from worker.federated.effect import effect_factors, summaries
from worker.federated.encoders import load_encoder
from worker.federated.errors import InvalidConfigError
from worker.federated.experiments.another_family import new_student
from worker.federated.experiments.config import BuiltinMember, Probes, Setting
from worker.federated.experiments.distillation import distill
from worker.federated.experiments.gauging import gauged_private
from worker.federated.experiments.narrow import likeness
from worker.federated.gauge import agreed_codes, agreement, probe_scores, score_count
from worker.federated.objectives.encoder import embed_texts
from worker.federated.probes import probe_batches

WORDS = ("the", "film", "was", "good", "bad", "a", "happy", "sad", "story")
TEXTS = [f"{one} {two}" for one in WORDS for two in WORDS]


def teacher() -> BertModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = BertConfig(
            vocab_size=VOCABULARY_SIZE,
            hidden_size=96,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=16,
            initializer_range=0.3,
        )
        return BertModel(config, add_pooling_layer=False).eval()


def student(width: int = 32) -> LlamaModel:
    with torch.random.fork_rng():
        return new_student(teacher(), make_tokenizer(), width=width, num_layers=2, seed=3)


def test_words_are_the_teachers_principal_components_and_layers_are_new() -> None:
    table = teacher().get_input_embeddings().weight.detach()
    words = student().get_input_embeddings().weight.detach()
    left, values, _ = torch.linalg.svd((table - table.mean(dim=0)).double(), full_matrices=False)
    best = (left[:, :32] * values[:32]) @ (left[:, :32] * values[:32]).T  # best Gram of rank 32
    gram = words.double() @ words.double().T
    torch.testing.assert_close(gram / gram.norm(), best / best.norm(), atol=1e-5, rtol=1e-4)
    assert student().config.model_type == "llama"
    with pytest.raises(InvalidConfigError, match="multiple of 32, at most 96"):
        student(100)


def test_it_learns_from_the_teacher_and_is_loaded_and_cut(tmp_path: Path) -> None:
    model, tokenizer = student(), make_tokenizer()
    sides = [embed_texts(m, tokenizer, TEXTS, 16) for m in (model, teacher())]
    before = likeness(*sides)
    distill(
        model,
        teacher(),
        tokenizer,
        TEXTS,
        num_steps=60,
        batch_size=16,
        learning_rate=3e-3,
        max_length=16,
        seed=0,
    )
    sides[0] = embed_texts(model, tokenizer, TEXTS, 16)
    assert likeness(*sides) > before
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loaded, _ = load_encoder(1, tmp_path)
    assert isinstance(loaded, LlamaModel)
    assert len(loaded.layers) == loaded.config.num_hidden_layers == 1
    assert embed_texts(loaded, tokenizer, TEXTS[:3], 16).shape == (3, 32)


def test_experiments_write_by_effect_from_what_all_models_finally_say() -> None:
    clients = [make_client("a", rank=4), make_client("b", "gemma", width=48, rank=2, seed=1)]
    members = (BuiltinMember(model="tiny_llama", task="story_classification", rank=4),)
    setting = Setting(name="s", global_rank=4, members=members, probes=Probes(num_texts=81))
    found = gauged_private(setting, clients, TEXTS, "exchange", "effect")

    def read(number: int):
        return probe_batches(clients[number].tokenizer, TEXTS, "text", max_length=16)

    said = [summaries(client.model, read(number)) for number, client in enumerate(clients)]
    scores = [probe_scores(summary, score_count(len(TEXTS), 4)) for summary in said]
    codes = agreed_codes(agreement(scores), 4)
    for number, client in enumerate(clients):
        expected = effect_factors(client.model, partial(read, number), codes)
        for module, factors in expected.items():
            brought = found[client.client_id]
            rank = client.lora_rank
            torch.testing.assert_close(brought[f"factors/A/{module}"], factors.in_factor[:rank])
            torch.testing.assert_close(brought[f"factors/B/{module}"], factors.out_factor[:, :rank])
