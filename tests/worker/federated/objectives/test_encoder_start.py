"""Text encoders start from their own label texts, whichever family, and agree with NumPy."""

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModel

from backend.contracts.base_models import BaseModelRef
from backend.contracts.datasets import Example
from backend.contracts.enums import TaskKind
from backend.contracts.metrics import MetricName
from backend.contracts.params.h2tune import H2TuneParams
from backend.contracts.params.lora import FedItParams, LocalOnlyParams
from backend.contracts.strategies import Params
from backend.contracts.training import TrainingConfig
from tests.worker.federated.strategies.rounds import training
from tests.worker.federated.tiny import make_data, make_model, make_tokenizer
from worker.federated.encoders import PACKAGE, packaged_encoder
from worker.federated.errors import InvalidConfigError, UnsupportedModelError
from worker.federated.objectives.classification import HeadObjective
from worker.federated.objectives.encoder import COSINE_SCALE, EncoderObjective
from worker.federated.objectives.encoder_start import are_pairs, words_of
from worker.federated.objectives.loading import load_for_task
from worker.federated.objectives.objective import Objective
from worker.federated.simulation import SimulatedClient, simulate
from worker.federated.types import ClientData

CPU = torch.device("cpu")
FAMILIES = ("bert", "roberta", "distilbert")
PUBLIC_DATA = Path(__file__).parents[5] / "shared" / "data"
"""Beside the checkout, where there is any."""


def saved(family: str, folder: Path, **changes: int) -> BaseModelRef:
    """A checkpoint without a head."""
    make_model(family, **changes).base_model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return BaseModelRef(source="folder", id=str(folder))


def load(
    ref: BaseModelRef, data: ClientData, config: TrainingConfig | None = None
) -> EncoderObjective:
    _, objective = load_for_task(ref, data, config or training(), device=CPU, dtype=torch.float32)
    assert isinstance(objective, EncoderObjective)
    return objective


def data_of(rows: list[tuple[str, str]], **described: str) -> ClientData:
    """The same rows to train, validate and test on; good enough to look at a start."""
    train, validation, test = (
        tuple(
            Example(question=q, answer=a, split=split, label_text=described.get(a)) for q, a in rows
        )
        for split in ("train", "validation", "test")
    )
    return ClientData(TaskKind.CLASSIFICATION, train, validation, test)


def numpy_embeddings(ref: BaseModelRef, texts: list[str]) -> np.ndarray:
    """Each text alone, so without any padding: mean over its tokens, of length one."""
    model, tokenizer = AutoModel.from_pretrained(ref.id).eval(), make_tokenizer()
    found = []
    for text in texts:
        with torch.no_grad():
            states = model(input_ids=tokenizer(text, return_tensors="pt").input_ids)
        mean = states.last_hidden_state[0].numpy().astype(np.float64).mean(axis=0)
        found.append(mean / np.sqrt((mean * mean).sum()))
    return np.stack(found)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_head_starts_as_the_embeddings_of_its_labels_own_words(
    family: str, tmp_path: Path
) -> None:
    ref = saved(family, tmp_path)
    rows = [("the film was good", "yes"), ("a sad story", "sad_story"), ("the film", "no")]
    objective = load(ref, data_of(rows))
    expected = numpy_embeddings(ref, ["no", "sad story", "yes"])  # labels in alphabetical order
    np.testing.assert_allclose(objective.head["weight"].detach(), expected, atol=1e-5)
    assert objective.head["bias"].tolist() == [0.0, 0.0, 0.0]
    again = load(ref, data_of(rows))
    assert torch.equal(objective.head["weight"], again.head["weight"])


def test_a_data_set_may_describe_its_labels(tmp_path: Path) -> None:
    ref = saved("bert", tmp_path)
    rows = [("the film", "yes"), ("a story", "no")]
    described = {"yes": "a happy story", "no": "the film was bad"}
    objective = load(ref, data_of(rows, **described))
    expected = numpy_embeddings(ref, [described["no"], described["yes"]])
    np.testing.assert_allclose(objective.head["weight"].detach(), expected, atol=1e-5)
    with pytest.raises(InvalidConfigError, match=r"The client's data: .*the label 'no'"):
        load(ref, data_of(rows, yes="a happy story"))


@pytest.mark.parametrize(("alike", "apart"), [("same", "other"), ("a_match", "no_match")])
def test_pairs_start_at_a_threshold_and_know_which_label_is_close(
    alike: str, apart: str, tmp_path: Path
) -> None:
    ref = saved("distilbert", tmp_path)
    texts = ["the happy film", "a sad story", "was bad", "yes yes"]
    pairs = [(text, text) for text in texts] + list(pairwise(texts))
    labels = [alike] * len(texts) + [apart] * (len(texts) - 1)
    rows = [("\n".join(pair), label) for pair, label in zip(pairs, labels, strict=True)]
    data = data_of(rows)
    objective = load(ref, data)
    first, second = (numpy_embeddings(ref, list(side)) for side in zip(*pairs, strict=True))
    cosines = np.sort((first * second).sum(axis=1))
    threshold = objective.head["threshold"].item()
    assert threshold == pytest.approx(cosines[len(cosines) // 2], abs=1e-5)
    sign = 1.0 if alike > apart else -1.0  # the second label's logit is s (cosine - t)
    assert objective.head["scale"].item() == sign * COSINE_SCALE
    with torch.no_grad():
        objective.head["threshold"].copy_(torch.tensor((1.0 + cosines[len(texts) - 2]) / 2))
    model, _ = load_for_task(ref, data, training(), device=CPU, dtype=torch.float32)
    assert objective.accuracy(model, data.test) == 1.0  # equal texts are closest


def test_with_one_label_to_train_on_the_second_counts_as_close(tmp_path: Path) -> None:
    ref = saved("bert", tmp_path)
    both = data_of([("the film\na film", "a"), ("a story\nthe story", "b")])
    for label in ("a", "b"):
        train = tuple(e for e in both.train if e.answer == label)
        objective = load(ref, ClientData(both.task, train, both.validation, both.test))
        assert objective.head["scale"].item() == COSINE_SCALE


def test_a_question_that_is_no_pair_is_named(tmp_path: Path) -> None:
    ref = saved("bert", tmp_path)
    objective = load(ref, data_of([("the film\na film", "a"), ("a story\nthe story", "b")]))
    with pytest.raises(InvalidConfigError, match="has 1 lines where pairs"):
        objective.encode([Example(question="the film", answer="a", split="test")])


def test_pairs_with_three_labels_get_a_head_over_both_texts(tmp_path: Path) -> None:
    ref = saved("roberta", tmp_path)
    rows = [(f"{text}\na story", label) for text, label in zip("abc", "xyz", strict=True)]
    _, objective = load_for_task(ref, data_of(rows), training(), device=CPU, dtype=torch.float32)
    assert isinstance(objective, HeadObjective)


def test_what_pairs_are() -> None:
    def found(*questions: str) -> bool:
        return are_pairs([Example(question=q, answer="a", split="test") for q in questions])

    assert found("one\ntwo", "three\n\n four ")
    assert not found("one\ntwo", "three")
    assert not found("one\ntwo\nthree", "four\nfive\nsix")
    assert not found("Good or bad?\nA film", "Good or bad?\nA story")  # an instruction
    assert [words_of(label) for label in ("not_entailment", "Yes", "_")] == [
        *("not entailment", "Yes", "_")
    ]


def test_a_checkpoint_s_own_head_is_kept_where_it_fits_the_classes(tmp_path: Path) -> None:
    headed = make_model("bert")
    headed.save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    ref = BaseModelRef(source="folder", id=str(tmp_path))
    two, three = ([("the film", label) for label in labels] for labels in ("ab", "abc"))
    _, own = load_for_task(ref, data_of(two), training(), device=CPU, dtype=torch.float32)
    assert isinstance(own, HeadObjective)
    assert torch.equal(own.head["classifier.weight"], headed.classifier.weight)
    assert load(ref, data_of(three)).head["weight"].shape == (3, 32)


def test_a_promised_head_that_is_not_there_is_not_made_up(tmp_path: Path) -> None:
    ref = saved("bert", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["architectures"] = ["BertForSequenceClassification"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    load(ref, data_of([("the film", "yes"), ("a story", "no")]))
    config["num_hidden_layers"] = 3
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedModelError, match=r"lacks weights .*encoder\.layer\.2\."):
        load(ref, data_of([("the film", "yes"), ("a story", "no")]))


@pytest.mark.parametrize(
    ("params", "families"),
    [
        (H2TuneParams(), ("bert", "distilbert")),
        (FedItParams(), ("roberta", "roberta")),
        (LocalOnlyParams(), ("bert", "distilbert")),
    ],
    ids=("h2tune", "fedit", "local_only"),
)
def test_heads_are_private_and_kept_from_round_to_round(
    params: Params, families: tuple[str, str], tmp_path: Path
) -> None:
    config = training(local_steps=6, batch_size=8)
    data = make_data(num_train=16)
    members, starts = [], {}
    for client_id, family in zip("ab", families, strict=True):
        ref = saved(family, tmp_path / client_id)
        model, objective = load_for_task(ref, data, config, device=CPU, dtype=torch.float32)
        starts[client_id] = objective.head["weight"].detach().clone()

        def fresh(config: TrainingConfig, ref: BaseModelRef = ref) -> Objective:
            return load(ref, data, config)

        members.append(
            SimulatedClient(client_id, model, make_tokenizer(), data, 4, 8.0, make_objective=fresh)
        )
    result = simulate(
        params,
        members,
        num_rounds=2,
        training=config,
        global_rank=8,
        seed=0,
        output=tmp_path / "delivered",
    )
    for client_id, start in starts.items():
        kept = result.private[client_id]["head/weight"]
        assert not torch.equal(kept, start)
        assert not any("head" in name for name in result.state.tensors)
        if isinstance(params, LocalOnlyParams):  # nothing else changes after the last round
            last = result.rounds[-1].metrics[client_id][MetricName.ACCURACY_AFTER_TRAINING]
            assert result.delivered[client_id][MetricName.ACCURACY_DELIVERED] == last


@pytest.fixture(scope="module")
def packaged() -> BaseModelRef:
    pytest.importorskip(PACKAGE, reason="the package with the real encoder is not installed")
    if not PUBLIC_DATA.is_dir():
        pytest.skip(f"there are no public data files in {PUBLIC_DATA.name!r} beside the checkout")
    return BaseModelRef(source="folder", id=str(packaged_encoder()))


def public_rows(name: str, count: int) -> list[tuple[str, str]]:
    lines = (PUBLIC_DATA / f"{name}_test.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines[:count]]
    return [
        ("\n".join(r[key] for key in ("text_a", "text_b") if r.get(key)), r["answer"]) for r in rows
    ]


def test_a_real_encoder_knows_something_before_any_training(packaged: BaseModelRef) -> None:
    sentences = {"Negative": "This movie is terrible.", "Positive": "This movie is wonderful."}
    config = training(max_length=64)
    for data, at_least in (
        (data_of(public_rows("sst2", 200), **sentences), 0.62),
        (data_of(public_rows("qqp", 100)), 0.62),
    ):
        model, objective = load_for_task(packaged, data, config, device=CPU, dtype=torch.float32)
        assert isinstance(objective, EncoderObjective)
        assert objective.accuracy(model, data.test) >= at_least  # of chance: .5, within .04 or .05
