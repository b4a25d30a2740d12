"""Classification from embeddings, with a private head."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file
from transformers import BertConfig, BertModel, PreTrainedModel

from backend.contracts.datasets import Example
from tests.worker.federated.tiny import VOCABULARY_SIZE, make_tokenizer
from worker.federated.errors import InvalidConfigError
from worker.federated.objectives.encoder import (
    COSINE_SCALE,
    EncoderSettings,
    embed_texts,
    pair_objective,
    text_objective,
)

LABELS = {"no": "the film was bad", "yes": "the film was good"}
SETTINGS = EncoderSettings(max_length=16)


def encoder() -> PreTrainedModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = BertConfig(
            vocab_size=VOCABULARY_SIZE,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=16,
        )
        return BertModel(config, add_pooling_layer=False).eval()


def row(question: str, answer: str) -> Example:
    return Example(question=question, answer=answer, split="train")


def test_embeddings_do_not_depend_on_their_company() -> None:
    model, tokenizer = encoder(), make_tokenizer()
    alone = embed_texts(model, tokenizer, ["a sad story"], 16)
    among = embed_texts(model, tokenizer, ["the happy film was good", "a sad story"], 16)
    assert torch.allclose(alone[0], among[1], atol=1e-5)
    assert torch.allclose(among.norm(dim=1), torch.ones(2), atol=1e-5)


def test_label_texts_classify_themselves_before_any_training() -> None:
    model = encoder()
    objective = text_objective(model, make_tokenizer(), LABELS, SETTINGS)
    rows = [row(text, answer) for answer, text in LABELS.items()]
    assert objective.accuracy(model, rows) == 1.0
    batch = objective.collate(objective.encode(rows))
    logits = objective.target_logits(model, batch)
    # A text's cosine with itself is one, so its own logit is the scale.
    assert torch.allclose(logits.diagonal(), torch.full((2,), COSINE_SCALE), atol=1e-4)
    by_hand = -logits.log_softmax(dim=1).diagonal().mean()
    assert math.isclose(objective.mean_loss(model, rows), by_hand.item(), rel_tol=1e-4)


def test_the_head_learns_and_travels(tmp_path) -> None:  # type: ignore[no-untyped-def]
    model = encoder()
    objective = text_objective(model, make_tokenizer(), LABELS, SETTINGS)
    turned = [row("the film was good", "no"), row("the film was bad", "yes")]
    assert objective.accuracy(model, turned) == 0.0
    adam = torch.optim.Adam(objective.head.values(), lr=0.1)
    batch = objective.collate(objective.encode(turned))
    for _ in range(30):
        loss = torch.nn.functional.cross_entropy(
            objective.target_logits(model, batch), objective.targets(batch)
        )
        adam.zero_grad()
        loss.backward()
        adam.step()
    assert objective.accuracy(model, turned) == 1.0
    (tmp_path / "adapter_config.json").write_text('{"r": 4, "task_type": null}')
    objective.save_head(tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config == {"r": 4, "task_type": "FEATURE_EXTRACTION"}
    assert json.loads((tmp_path / "labels.json").read_text()) == ["no", "yes"]
    use = json.loads((tmp_path / "head.json").read_text())
    assert use == {"kind": "text_directions", "scale": 20.0, "max_length": 16}
    saved = load_file(tmp_path / "head.safetensors")
    assert saved.keys() == {"weight", "bias"}
    assert torch.equal(saved["weight"], objective.head["weight"])


def test_pairs_start_at_the_median_cosine() -> None:
    model, tokenizer = encoder(), make_tokenizer()
    pairs = ["a sad story\na happy story", "the film was good\nyes", "a story\na story"]
    rows = [row(pair, "yes") for pair in pairs]
    objective = pair_objective(model, tokenizer, ("no", "yes"), rows, SETTINGS)
    cosines = sorted(
        float(torch.prod(embed_texts(model, tokenizer, pair.split("\n"), 16), dim=0).sum())
        for pair in pairs
    )
    assert math.isclose(objective.head["threshold"].item(), cosines[1], abs_tol=1e-5)
    # Equal texts lie above any threshold, so they count as close.
    assert objective.accuracy(model, rows[2:]) == 1.0


def test_an_unknown_answer_is_named() -> None:
    model = encoder()
    objective = text_objective(model, make_tokenizer(), LABELS, SETTINGS)
    with pytest.raises(InvalidConfigError, match=r"'maybe'.*none of no, yes"):
        objective.encode([row("a story", "maybe")])
    with pytest.raises(InvalidConfigError, match="no examples"):
        objective.accuracy(model, [])
