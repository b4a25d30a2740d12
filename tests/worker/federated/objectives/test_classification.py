"""Classification heads of real families: trained in private, delivered with the adapter."""

import copy
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from torch import nn
from transformers import GPT2Config, GPT2ForSequenceClassification, PreTrainedModel

from backend.contracts.base_models import BaseModelRef
from backend.contracts.datasets import Example
from backend.contracts.enums import TaskKind
from backend.contracts.metrics import MetricName
from backend.contracts.params.h2tune import H2TuneParams
from backend.contracts.params.lora import LocalOnlyParams
from backend.contracts.strategies import Params
from tests.worker.federated.strategies.rounds import at_work, training
from tests.worker.federated.tiny import VOCABULARY_SIZE, make_data, make_model, make_tokenizer
from worker.federated.errors import InvalidConfigError, UnsupportedModelError
from worker.federated.objectives.causal import CausalObjective
from worker.federated.objectives.classification import HeadObjective, TextInputs, head_modules
from worker.federated.objectives.labels import LabelObjective
from worker.federated.objectives.loading import load_classifier, load_for_task
from worker.federated.placement import Placement
from worker.federated.simulation import SimulatedClient, SimulationResult, simulate
from worker.federated.types import ClientData

LABELS = ("no", "yes")
CPU = torch.device("cpu")
TEXT_FAMILIES = ("bert", "roberta", "distilbert", "gpt2")


def classifier(family: str) -> PreTrainedModel:
    if family != "gpt2":
        return make_model(family)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = GPT2Config(
            vocab_size=VOCABULARY_SIZE, n_embd=32, n_layer=2, n_head=4, n_positions=64
        )
        config.pad_token_id = 0
        return GPT2ForSequenceClassification(config).eval()


def bind(model: PreTrainedModel, config: object) -> HeadObjective:
    return HeadObjective(model, TextInputs(make_tokenizer(), 32), LABELS, head_learning_rate=5e-3)


def member(client_id: str, family: str, **changes: object) -> SimulatedClient:
    values = {
        "client_id": client_id,
        "model": classifier(family),
        "tokenizer": make_tokenizer(),
        "data": make_data(num_train=32),
        "lora_rank": 4,
        "lora_alpha": 8.0,
        "bind_objective": bind,
        **changes,
    }
    return SimulatedClient(**values)


def run(
    params: Params, members: list[SimulatedClient], output: Path, **changes
) -> SimulationResult:
    return simulate(
        params,
        members,
        num_rounds=2,
        training=training(**changes),
        global_rank=8,
        seed=0,
        output=output,
    )


@pytest.mark.parametrize("family", TEXT_FAMILIES)
@pytest.mark.parametrize("params", [LocalOnlyParams(), H2TuneParams()])
def test_stock_peft_gives_the_same_logits_with_head_and_lora(
    family: str, params: Params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[torch.Tensor] = []
    batch = {"input_ids": torch.tensor([[8, 9, 10, 12], [8, 9, 11, 13]])}
    write = HeadObjective.save_head

    def save_and_look(objective: HeadObjective, folder: Path) -> None:
        with torch.no_grad():
            seen.append(client_model[-1](**batch).logits)
        write(objective, folder)

    client_model: list[PreTrainedModel] = []

    def bind_and_keep(model: PreTrainedModel, config: object) -> HeadObjective:
        client_model.append(model)
        return bind(model, config)

    monkeypatch.setattr(HeadObjective, "save_head", save_and_look)
    client = member("a", family, bind_objective=bind_and_keep)
    result = run(params, [client], tmp_path)

    base = classifier(family)
    loaded = PeftModel.from_pretrained(base, tmp_path / "a").eval()
    with torch.no_grad():
        logits = loaded(**batch).logits
        plain = classifier(family)(**batch).logits
    torch.testing.assert_close(logits, seen[0], atol=1e-5, rtol=0)
    assert (logits - plain).abs().max() > 1e-3
    assert loaded.peft_config["default"].task_type == "SEQ_CLS"
    assert set(loaded.peft_config["default"].modules_to_save) >= {
        name.rpartition(".")[2] for name in head_modules(base)
    }
    assert (
        result.delivered["a"][MetricName.ACCURACY_DELIVERED]
        == (result.rounds[-1].metrics["a"][MetricName.ACCURACY_AFTER_TRAINING])
    )


def test_different_families_learn_and_no_head_leaves_them(tmp_path: Path) -> None:
    members = [member("a", "bert"), member("b", "distilbert"), member("c", "gpt2")]
    before = {name: p.clone() for name, p in members[0].model.named_parameters()}
    result = run(H2TuneParams(gauge="none"), members, tmp_path, local_steps=40, batch_size=8)
    for client_id in "abc":
        assert result.delivered[client_id][MetricName.ACCURACY_DELIVERED] == 1.0, client_id
    heads = {name for name in result.private["a"] if name.startswith("head/")}
    assert {"head/classifier.weight", "head/bert.pooler.dense.weight"} <= heads
    assert not any("classifier" in n or "pooler" in n for n in result.state.tensors)
    assert all(torch.equal(before[n], p) for n, p in members[0].model.named_parameters())
    trained = result.private["a"]["head/classifier.weight"]
    assert not torch.equal(trained, before["classifier.weight"])


def test_batches_are_the_tokenizer_s_and_pairs_are_told_apart() -> None:
    inputs = TextInputs(make_tokenizer(), 32)
    rows = [
        inputs.encode(Example(question=text, answer="yes", split="train"))
        for text in ("the film", "the film was\na story")
    ]
    batch = inputs.collate(rows)
    assert batch["input_ids"].shape == (2, 5)
    assert batch["attention_mask"].tolist() == [[1, 1, 0, 0, 0], [1, 1, 1, 1, 1]]
    assert batch["input_ids"][0, 2:].tolist() == [0, 0, 0]


def test_loss_is_the_mean_cross_entropy() -> None:
    model = classifier("bert")
    objective, rows = bind(model, None), make_data().test
    losses = []
    for example in rows:
        ids = make_tokenizer()(example.question, return_tensors="pt").input_ids
        with torch.no_grad():
            logits = model(input_ids=ids).logits
        label = torch.tensor([LABELS.index(example.answer)])
        losses.append(nn.functional.cross_entropy(logits, label).item())
    assert objective.mean_loss(model, rows) == pytest.approx(sum(losses) / len(losses), rel=1e-4)


def test_what_does_not_fit_is_refused() -> None:
    inputs = TextInputs(make_tokenizer(), 32)
    with pytest.raises(InvalidConfigError, match="2 classes but the data have 3"):
        HeadObjective(classifier("bert"), inputs, ["a", "b", "c"])
    objective = bind(classifier("bert"), None)
    with pytest.raises(InvalidConfigError, match=r"'maybe'.* none of no, yes"):
        objective.encode([Example(question="the film", answer="maybe", split="train")])
    with pytest.raises(InvalidConfigError, match="no examples"):
        objective.accuracy(classifier("bert"), [])


def saved(model: PreTrainedModel, folder: Path) -> BaseModelRef:
    model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return BaseModelRef(source="folder", id=str(folder))


def test_a_head_that_is_drawn_anew_is_the_same_everywhere(tmp_path: Path) -> None:
    ref = saved(make_model("bert").bert, tmp_path)  # a body without a head
    placement = Placement(CPU, torch.float32)
    models = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        model, _ = load_classifier(ref, make_data(), training(), placement)
        models.append(model)
    for one, two in zip(*(model.named_parameters() for model in models), strict=True):
        assert torch.equal(one[1], two[1]), one[0]
    assert models[0].classifier.weight.abs().sum() > 0
    assert torch.equal(
        models[0].bert.pooler.dense.weight, make_model("bert").bert.pooler.dense.weight
    )


def test_a_head_for_the_same_number_of_classes_is_kept_and_another_replaced(
    tmp_path: Path,
) -> None:
    model = make_model("roberta")
    ref = saved(model, tmp_path)
    placement = Placement(CPU, torch.float32)
    kept, _ = load_classifier(ref, make_data(), training(), placement)
    assert torch.equal(kept.classifier.out_proj.weight, model.classifier.out_proj.weight)
    third = Example(question="the film", answer="maybe", split="train")
    data = make_data()
    more = ClientData(data.task, (*data.train, third), data.validation, data.test)
    replaced, _ = load_classifier(ref, more, training(), placement)
    assert replaced.classifier.out_proj.weight.shape == (3, 32)
    assert torch.equal(replaced.classifier.dense.weight, model.classifier.dense.weight)


def test_a_decoder_answers_in_words(tmp_path: Path) -> None:
    ref = saved(make_model("llama"), tmp_path)
    for answer_loss, expected in (("labels", LabelObjective), ("tokens", CausalObjective)):
        chosen = training(answer_loss=answer_loss)
        _, objective = load_for_task(ref, make_data(), chosen, device=CPU, dtype=torch.float32)
        assert isinstance(objective, expected)


def test_tasks_that_a_family_cannot_do_are_refused(tmp_path: Path) -> None:
    ref, data = saved(make_model("bert"), tmp_path), make_data()
    numbers = ClientData(TaskKind.FILL_IN, data.train, data.validation, data.test)
    with pytest.raises(UnsupportedModelError, match="can only do 'classification', not 'fill_in'"):
        load_for_task(ref, numbers, training(), device=CPU, dtype=torch.float32)


def test_the_objective_belongs_to_the_model_that_trains() -> None:
    client = member("a", "bert")
    working = at_work(client, training())
    head = copy.copy(dict(working.objective.head))
    assert head["classifier.weight"] is working.model.classifier.weight
    assert head["classifier.weight"] is not client.model.classifier.weight
