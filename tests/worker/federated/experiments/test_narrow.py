"""Narrower encoders: fitted pruning, and distillation from the whole encoder."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel

from tests.worker.federated.tiny import VOCABULARY_SIZE, make_tokenizer
from worker.federated.encoders import load_encoder
from worker.federated.errors import InvalidConfigError
from worker.federated.experiments.distillation import distill
from worker.federated.experiments.narrow import likeness, training_texts
from worker.federated.experiments.pruning import pruned, ridge_fit, watch
from worker.federated.objectives.encoder import embed_texts, tokenize

TEXTS = [
    "the film was good",
    "the film was bad",
    "a sad story",
    "the happy film",
    "a story was happy",
    "sad film was a story",
]


def encoder() -> BertModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = BertConfig(
            vocab_size=VOCABULARY_SIZE,
            hidden_size=16,
            intermediate_size=64,
            num_hidden_layers=3,
            num_attention_heads=4,
            max_position_embeddings=16,
            initializer_range=0.3,
        )
        return BertModel(config, add_pooling_layer=False).eval()


def small(width: int = 8, num_layers: int = 2) -> BertModel:
    model, tokenizer = encoder(), make_tokenizer()
    seen = watch(model, [tokenize(tokenizer, TEXTS, 16)])
    return pruned(model, seen, width=width, num_layers=num_layers)


def test_a_regression_finds_the_map_that_made_the_target() -> None:
    source = np.random.default_rng(0)
    given = source.normal(size=(400, 5)).astype(np.float32)
    weight, bias = source.normal(size=(3, 5)), source.normal(size=3)
    target = (given @ weight.T + bias).astype(np.float32)
    found, offset = ridge_fit(torch.from_numpy(given), torch.from_numpy(target))
    # The penalty of a thousandth shrinks the weights by about a thousandth.
    np.testing.assert_allclose(found.numpy(), weight, rtol=0.01, atol=0.01)
    np.testing.assert_allclose(offset.numpy(), bias, atol=0.01)


def test_watching_leaves_padding_out() -> None:
    tokenizer = make_tokenizer()
    batch = tokenize(tokenizer, TEXTS, 16)
    seen = watch(encoder(), [batch])
    num_tokens = int(batch["attention_mask"].sum())
    assert num_tokens < batch["attention_mask"].numel()
    assert len(seen) == 3
    assert seen[0].states.shape == seen[2].given.shape == (num_tokens, 16)
    assert seen[1].neurons.shape == (num_tokens, 64)
    assert torch.equal(seen[0].given, seen[1].states)


def test_a_pruned_encoder_is_narrower_in_every_part() -> None:
    config = small().config
    assert (config.hidden_size, config.intermediate_size) == (8, 32)
    assert (config.num_attention_heads, config.num_hidden_layers) == (2, 2)


def test_equal_arguments_prune_alike() -> None:
    left, right = small().state_dict(), small().state_dict()
    assert all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize(("width", "num_layers"), [(6, 2), (16, 2), (8, 4), (8, 0)])
def test_what_does_not_fit_is_refused(width: int, num_layers: int) -> None:
    with pytest.raises(InvalidConfigError, match=str(width if width != 8 else num_layers)):
        small(width, num_layers)


def test_distillation_brings_a_student_nearer_to_its_teacher() -> None:
    teacher, tokenizer, student = encoder(), make_tokenizer(), small()
    tables = student.get_input_embeddings().weight.clone()

    def agreement() -> float:
        pairs = [embed_texts(model, tokenizer, TEXTS, 16) for model in (student, teacher)]
        return likeness(*pairs)

    before = agreement()
    losses = distill(
        student,
        teacher,
        tokenizer,
        TEXTS,
        num_steps=60,
        batch_size=6,
        learning_rate=3e-3,
        max_length=16,
        seed=0,
    )
    assert losses[-1] < losses[0]
    assert agreement() > before
    assert torch.equal(tables, student.get_input_embeddings().weight)


def test_a_saved_encoder_is_loaded_and_cut(tmp_path: Path) -> None:
    student = small()
    student.save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    model, _ = load_encoder(1, tmp_path, torch.bfloat16)
    assert model.dtype == torch.bfloat16
    assert len(model.encoder.layer) == model.config.num_hidden_layers == 1
    with pytest.raises(InvalidConfigError, match="choose 1 to 2"):
        load_encoder(3, tmp_path)
    with pytest.raises(InvalidConfigError, match="--models-dir"):
        load_encoder(1, tmp_path / "nowhere")


def test_texts_come_from_training_files_alone(tmp_path: Path) -> None:
    def write(name: str, texts: list[str]) -> None:
        lines = [json.dumps({"text_a": text, "text_b": "the same"}) for text in texts]
        (tmp_path / name).write_text("\n".join(lines))

    write("a_train.jsonl", [f"text {number}" for number in range(800)])
    write("a_test.jsonl", ["a test row"])
    texts = training_texts(tmp_path)
    assert len(texts) == 801
    assert "a test row" not in texts
    write("a_train.jsonl", ["too few"])
    with pytest.raises(InvalidConfigError, match="2 texts, too few for 712"):
        training_texts(tmp_path)


def test_likeness_is_one_for_a_turned_space_and_ignores_order_of_axes() -> None:
    embedded = torch.nn.functional.normalize(
        torch.randn(20, 6, generator=torch.Generator().manual_seed(0)), dim=1
    )
    assert likeness(embedded, embedded.flip(1)) == pytest.approx(1.0, abs=1e-5)
