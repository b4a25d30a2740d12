"""Whoever downloads an adapter uses it with stock libraries, as docs/how-to/use-an-adapter.md says.

The page's own code is run, and must be as accurate as the platform said on the same rows.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel

from backend.contracts.base_models import BaseModelRef
from backend.contracts.datasets import Example, Split
from backend.contracts.enums import TaskKind
from backend.contracts.metrics import MetricName
from backend.contracts.params.h2tune import H2TuneParams
from backend.contracts.params.lora import LocalOnlyParams
from backend.contracts.strategies import Params
from backend.contracts.training import TrainingConfig
from tests.documented import (
    BY_EMBEDDINGS,
    BY_OWN_HEAD,
    Classify,
    documented_classify,
    run_documented,
)
from tests.worker.federated.strategies.rounds import training
from tests.worker.federated.tiny import make_model, make_tokenizer
from worker.federated.adapters.merging import merge_adapter
from worker.federated.errors import InvalidConfigError
from worker.federated.objectives.classification import HeadObjective, TextInputs
from worker.federated.objectives.loading import load_for_task
from worker.federated.simulation import SimulatedClient, simulate
from worker.federated.types import ClientData

CPU = torch.device("cpu")
WORDS = ("film", "story", "good", "bad", "happy", "sad", "was", "a")


def rows(split: Split, *, pairs: bool) -> tuple[Example, ...]:
    """Hard enough that a few steps leave some wrong: only then equal accuracies say anything."""
    found = []
    for number, first in enumerate(WORDS):
        for second in WORDS:
            text = f"the {first}\n{second} the" if pairs else f"the {first} was {second} {split}"
            answer = "yes" if (number + len(second)) % 2 else "no"
            found.append(Example(question=text, answer=answer, split=split))
    return tuple(found)


def delivered(params: Params, base: Path, output: Path, *, pairs: bool) -> tuple[ClientData, float]:
    """Trains the checkpoint in `base`; the test rows and the accuracy that was reported."""
    data = ClientData(
        TaskKind.CLASSIFICATION,
        rows("train", pairs=pairs),
        rows("validation", pairs=pairs),
        rows("test", pairs=pairs),
    )
    ref = BaseModelRef(source="folder", id=str(base))
    config = training(local_steps=5, batch_size=8, learning_rate=0.01)

    def load(config: TrainingConfig) -> Any:
        return load_for_task(ref, data, config, device=CPU, dtype=torch.float32)

    model = load(config)[0]
    client = SimulatedClient(
        "a", model, make_tokenizer(), data, 4, 8.0, make_objective=lambda c: load(c)[1]
    )
    result = simulate(
        params, [client], num_rounds=2, training=config, global_rank=8, seed=0, output=output
    )
    return data, result.delivered["a"][MetricName.ACCURACY_DELIVERED]


def share_of_right(classify: Classify, examples: Sequence[Example], *, pairs: bool) -> float:
    texts: list[Any] = [e.question.split("\n") if pairs else e.question for e in examples]
    found = classify(texts)
    return sum(a == e.answer for a, e in zip(found, examples, strict=True)) / len(examples)


@pytest.mark.parametrize("params", [LocalOnlyParams(), H2TuneParams()], ids=("lora", "trilora"))
@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert"])
@pytest.mark.parametrize("pairs", [False, True], ids=("texts", "pairs"))
def test_the_documented_code_is_as_accurate_as_the_platform_said(
    params: Params, family: str, pairs: bool, tmp_path: Path
) -> None:
    base = tmp_path / "base"
    make_model(family).base_model.save_pretrained(base)
    make_tokenizer().save_pretrained(base)
    data, reported = delivered(params, base, tmp_path / "out", pairs=pairs)
    classify = documented_classify(BY_EMBEDDINGS, base, tmp_path / "out" / "a", tmp_path)
    assert share_of_right(classify, data.test, pairs=pairs) == reported
    assert 0.2 < reported < 1.0


def test_a_merged_encoder_has_its_head_beside_it(tmp_path: Path) -> None:
    base, out = tmp_path / "base", tmp_path / "out"
    make_model("bert").base_model.save_pretrained(base)
    make_tokenizer().save_pretrained(base)
    delivered(LocalOnlyParams(), base, out, pairs=False)
    ref = BaseModelRef(source="folder", id=str(base))
    merged = merge_adapter(ref, out / "a", tmp_path / "merged")
    names = {path.name for path in merged.iterdir()}
    assert {"head.safetensors", "head.json", "labels.json", "tokenizer.json"} <= names
    adapted = run_documented(BY_EMBEDDINGS, base, out / "a", tmp_path)["encoder"]
    batch = {"input_ids": torch.tensor([[8, 9, 10, 12]])}
    with torch.no_grad():
        expected = adapted(**batch).last_hidden_state
        found = AutoModel.from_pretrained(merged).eval()(**batch).last_hidden_state
        plain = AutoModel.from_pretrained(base).eval()(**batch).last_hidden_state
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert (plain - expected).abs().max() > 1e-3
    (out / "a" / "head.json").unlink()
    with pytest.raises(InvalidConfigError, match=r"head\.json is missing"):
        merge_adapter(ref, out / "a", tmp_path / "again")


def test_the_documented_code_for_a_classifier_s_own_head(tmp_path: Path) -> None:
    base = tmp_path / "base"
    model = make_model("distilbert")
    model.save_pretrained(base)
    make_tokenizer().save_pretrained(base)
    data = ClientData(
        TaskKind.CLASSIFICATION, *(rows(s, pairs=False) for s in ("train", "validation", "test"))
    )
    ref = BaseModelRef(source="folder", id=str(base))
    config = training(local_steps=5, batch_size=8, learning_rate=0.01)
    loaded, _ = load_for_task(ref, data, config, device=CPU, dtype=torch.float32)
    labels = sorted({e.answer for e in data.train})

    def bind(copy: Any, config: TrainingConfig) -> HeadObjective:
        return HeadObjective(copy, TextInputs(make_tokenizer(), config.max_length), labels)

    client = SimulatedClient("a", loaded, make_tokenizer(), data, 4, 8.0, bind_objective=bind)
    result = simulate(
        LocalOnlyParams(),
        [client],
        num_rounds=1,
        training=config,
        global_rank=8,
        seed=0,
        output=tmp_path / "out",
    )
    classify = documented_classify(BY_OWN_HEAD, base, tmp_path / "out" / "a", tmp_path)
    reported = result.delivered["a"][MetricName.ACCURACY_DELIVERED]
    assert share_of_right(classify, data.test, pairs=False) == reported
