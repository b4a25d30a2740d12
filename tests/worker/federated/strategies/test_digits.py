"""Two small vision transformers of different width and depth learn handwritten digits together."""

from functools import cache
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import PreTrainedModel, ViTConfig, ViTForImageClassification

from backend.contracts.metrics import MetricName
from backend.contracts.params.colora import CoLoraParams
from backend.contracts.params.h2tune import H2TuneParams
from backend.contracts.params.heterotune import HeteroTuneParams
from backend.contracts.strategies import Params
from tests.worker.federated.strategies.rounds import at_work, federation_of, training
from tests.worker.federated.tiny import make_tokenizer
from worker.federated.objectives.classification import HeadObjective, start_head
from worker.federated.simulation import SimulatedClient, SimulationResult, simulate
from worker.federated.strategies.registry import build_strategy
from worker.federated.tasks.images import ImageInputs, Preprocessing, handwritten_digits

DIGITS = [str(digit) for digit in range(10)]
PICTURES = ImageInputs(Preprocessing(size=8, patch_size=4))
SHARED: dict[str, tuple[Params, str]] = {
    "heterotune": (HeteroTuneParams(conflict="none"), "branches"),
    "h2tune": (H2TuneParams(), "slots/q"),
    "colora": (CoLoraParams(gauge="orthonormal"), "module/narrow/P/q"),
}


def objective(model: PreTrainedModel, _: object) -> HeadObjective:
    return HeadObjective(model, PICTURES, DIGITS, head_learning_rate=1e-2)


@cache
def client(name: str) -> SimulatedClient:
    width, depth, seed = {"narrow": (32, 3, 0), "wide": (48, 2, 1)}[name]
    torch.manual_seed(seed)
    model = ViTForImageClassification(
        ViTConfig(
            image_size=8,
            patch_size=4,
            hidden_size=width,
            intermediate_size=width,
            num_hidden_layers=depth,
            num_attention_heads=4,
            num_labels=10,
        )
    ).eval()
    start_head(model, ["classifier.weight", "classifier.bias"])
    data = handwritten_digits(seed=seed, num_train=150, num_validation=0, num_test=80)
    return SimulatedClient(name, model, make_tokenizer(), data, 4, 8.0, bind_objective=objective)


def run(params: Params, *names: str, num_rounds: int, local_steps: int) -> SimulationResult:
    return simulate(
        params,
        [client(name) for name in names],
        num_rounds=num_rounds,
        training=training(local_steps=local_steps, batch_size=16, evaluate_every=2),
        global_rank=4,
        seed=0,
    )


@pytest.mark.parametrize("name", SHARED)
def test_accuracy_is_far_above_chance(name: str) -> None:
    result = run(SHARED[name][0], "narrow", "wide", num_rounds=2, local_steps=35)
    for client_id in ("narrow", "wide"):
        first, last = (result.rounds[number].metrics[client_id] for number in (0, -1))
        assert first[MetricName.ACCURACY_BEFORE_TRAINING] < 0.25, "a fresh head guesses"
        assert last[MetricName.ACCURACY_AFTER_TRAINING] > 0.35, "guessing gives 0.1"
        assert 0 < last[MetricName.BYTES_UP_VALUES] < 0.5 * last[MetricName.BYTES_LORA]


@pytest.mark.parametrize("name", SHARED)
def test_clients_really_learn_from_each_other(name: str) -> None:
    """The deeper client alone leaves another shared state than with company."""
    params, key = SHARED[name]
    together = run(params, "narrow", "wide", num_rounds=1, local_steps=3)
    alone = run(params, "narrow", num_rounds=1, local_steps=3)
    assert together.rounds[0].report.values["relative_change"] > 0
    if name == "colora":  # personal: the state keeps everybody's module, plans mix the others'
        weights = together.rounds[0].report.values
        assert weights["mixing_weight/narrow/wide"] == weights["mixing_weight/wide/narrow"] == 1.0
        assert not alone.state.tensors.keys() >= together.state.tensors.keys()
    else:
        assert not torch.equal(together.state.tensors[key], alone.state.tensors[key])


@pytest.mark.parametrize("name", SHARED)
def test_the_head_is_delivered_inside_the_adapter(name: str, tmp_path: Path) -> None:
    params, member = SHARED[name][0], client("wide")
    config = training(local_steps=5, batch_size=16, evaluate_every=2)
    result = simulate(
        params,
        [member],
        num_rounds=1,
        training=config,
        global_rank=4,
        seed=0,
        output=tmp_path,
    )
    loaded = PeftModel.from_pretrained(at_work(member, config).model, tmp_path / "wide").eval()
    rows = member.data.test
    pixels = PICTURES.collate([row.question for row in rows])["pixel_values"]
    with torch.no_grad():
        answers = loaded(pixel_values=pixels).logits.argmax(dim=-1).tolist()
    right = sum(DIGITS[answer] == row.answer for answer, row in zip(answers, rows, strict=True))
    assert right / len(rows) == result.delivered["wide"][MetricName.ACCURACY_DELIVERED]
    head = torch.cat([t.flatten() for n, t in loaded.named_parameters() if "classifier" in n])
    fresh = torch.cat([t.flatten() for n, t in member.model.named_parameters() if "classif" in n])
    assert head.numel() >= fresh.numel()
    assert not torch.isin(head, fresh).all(), "the head was trained"
    strategy, federation = build_strategy(params), federation_of([member], global_rank=4)
    plan = strategy.configure_round(result.state, federation, 2, deliver=True)["wide"]
    own = tmp_path / "again"
    strategy.deliver_client(plan, at_work(member, config, result.private["wide"]), own)
    files = sorted(path.name for path in own.iterdir())
    assert files == sorted(path.name for path in (tmp_path / "wide").iterdir())
    for file in files:
        assert (own / file).read_bytes() == (tmp_path / "wide" / file).read_bytes(), file
