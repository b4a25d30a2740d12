import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from backend.contracts.enums import TaskKind
from backend.contracts.training import TrainingConfig
from tests.worker.federated.tiny import make_data, make_model, make_tokenizer
from worker.federated import training
from worker.federated.errors import NonFiniteError
from worker.federated.objectives.causal import CausalObjective
from worker.federated.objectives.objective import Batch
from worker.federated.optimizer import Group, rate_factor
from worker.federated.tasks.encoding import EncodedExample
from worker.federated.training import (
    Phase,
    Trained,
    endless_batches,
    num_optimizer_steps,
    train,
)
from worker.federated.types import Progress


def config(**changes: object) -> TrainingConfig:
    return TrainingConfig(**{"batch_size": 4, "learning_rate": 1e-2, "local_steps": 3, **changes})


OBJECTIVE = CausalObjective(make_tokenizer(), TaskKind.CLASSIFICATION, max_length=64)


def encoded(num: int = 8) -> Sequence[EncodedExample]:
    return OBJECTIVE.encode(make_data(num_train=num).train)


def head(model: PreTrainedModel, rate: float = 1e-2) -> Group:
    return Group("head", {"head": model.get_parameter("lm_head.weight")}, rate)


def norms(model: PreTrainedModel, rate: float = 1e-2) -> Group:
    return Group("norms", {"norm": model.get_parameter("model.norm.weight")}, rate)


def run(
    model: PreTrainedModel,
    phases: list[Phase],
    settings: TrainingConfig,
    *,
    moments: dict[str, torch.Tensor] | None = None,
    batches: Iterator[list[Batch]] | None = None,
    on_progress: Callable[[Progress], None] = lambda progress: None,
    round_number: int = 1,
) -> Trained:
    return train(
        model,
        OBJECTIVE,
        phases,
        batches or endless_batches(encoded(), settings, OBJECTIVE.collate, "test"),
        settings,
        moments=moments or {},
        seed=0,
        on_progress=on_progress,
        round_number=round_number,
    )


def untied_model() -> PreTrainedModel:
    model = make_model("llama")
    assert model.lm_head.weight is not model.model.embed_tokens.weight
    return model


def test_number_of_steps() -> None:
    assert num_optimizer_steps(config(), 100) == 3
    epochs = config(local_steps=None, local_epochs=2, gradient_accumulation_steps=2)
    assert num_optimizer_steps(epochs, 17) == 2 * 3  # 8 examples a step


def test_batches_cover_each_epoch_once_and_in_a_new_order() -> None:
    settings, rows = config(batch_size=3), encoded(8)
    steps = list(itertools.islice(endless_batches(rows, settings, OBJECTIVE.collate, 1, "a", 2), 6))
    seen = [tuple(row.tolist()) for step in steps for batch in step for row in batch["input_ids"]]
    wanted = sorted(tuple(row.input_ids) for row in rows)
    assert sorted(seen[:8]) == sorted(seen[8:]) == wanted
    assert seen[:8] != seen[8:]
    again = list(itertools.islice(endless_batches(rows, settings, OBJECTIVE.collate, 1, "a", 2), 6))
    assert all(
        torch.equal(one[0]["input_ids"], two[0]["input_ids"])
        for one, two in zip(steps, again, strict=True)
    )


def test_accumulation_equals_one_large_batch() -> None:
    results = []
    for size, accumulation in ((8, 1), (2, 4)):
        model = untied_model()
        settings = config(batch_size=size, gradient_accumulation_steps=accumulation)
        trained = run(model, [Phase([head(model)], 2)], settings)
        results.append((model.lm_head.weight.detach(), trained.mean_loss))
    torch.testing.assert_close(results[0][0], results[1][0], atol=1e-5, rtol=1e-4)
    assert results[0][1] == pytest.approx(results[1][1], rel=1e-5)


def test_one_step_is_adamw_on_the_clipped_gradient() -> None:
    model = untied_model()
    settings = config(local_steps=1, max_grad_norm=0.01, weight_decay=0.1)
    start = model.lm_head.weight.detach().clone()
    (batch,) = next(endless_batches(encoded(), settings, OBJECTIVE.collate, "test"))
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    loss = nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten(), ignore_index=-100
    )
    (gradient,) = torch.autograd.grad(loss, [model.lm_head.weight])
    gradient = gradient * 0.01 / gradient.norm()
    # First AdamW step: moments cancel to g / |g|, up to eps.
    expected = start * (1 - 1e-2 * 0.1) - 1e-2 * gradient / (gradient.abs() + 1e-8)
    trained = run(model, [Phase([head(model)], 1)], settings)
    torch.testing.assert_close(model.lm_head.weight.detach(), expected, atol=1e-5, rtol=1e-4)
    assert trained.mean_loss == pytest.approx(loss.item())


def test_a_phase_leaves_everything_else_bit_identical() -> None:
    model = untied_model()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    run(model, [Phase([head(model)], 2)], config())
    changed = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert changed == {"lm_head.weight"}


def test_phases_run_in_order_with_their_hooks() -> None:
    model, calls = untied_model(), []
    first = replace(head(model), after_step=lambda: calls.append("head"))
    phases = [
        Phase([first], 2, before=lambda: calls.append("start")),
        Phase([norms(model)], 1, before=lambda: calls.append("second")),
    ]
    run(model, phases, config())
    assert calls == ["start", "head", "head", "second"]


def test_resuming_with_moments_equals_training_on() -> None:
    settings = config()
    whole = untied_model()
    run(whole, [Phase([head(whole)], 4)], settings)
    halves = untied_model()
    batches = endless_batches(encoded(), settings, OBJECTIVE.collate, "test")
    first = run(halves, [Phase([head(halves)], 2)], settings, batches=batches)
    run(halves, [Phase([head(halves)], 2)], settings, batches=batches, moments=first.moments)
    assert torch.equal(whole.lm_head.weight, halves.lm_head.weight)


def test_moments_of_parts_that_rest_are_kept() -> None:
    model = untied_model()
    first = run(model, [Phase([head(model), norms(model)], 1)], config())
    second = run(model, [Phase([norms(model)], 1)], config(), moments=first.moments)
    assert torch.equal(second.moments["head/exp_avg"], first.moments["head/exp_avg"])
    assert second.moments["norm/step"].item() == 2


def test_penalty_adds_to_the_gradient_but_not_to_the_loss() -> None:
    plain, pulled = untied_model(), untied_model()
    group = head(pulled)
    weight = group.parameters["head"]
    one = run(plain, [Phase([head(plain)], 1)], config())
    two = run(
        pulled, [Phase([group], 1, penalty=lambda logits, batch: 100 * weight.sum())], config()
    )
    assert one.mean_loss == two.mean_loss
    assert pulled.lm_head.weight.mean() < plain.lm_head.weight.mean()


def test_warmup_and_cosine() -> None:
    settings = config(warmup_fraction=0.2, lr_schedule="cosine")
    factors = [rate_factor(step, 10, settings) for step in range(10)]
    assert factors[:3] == [0.5, 1.0, 1.0]
    assert factors[6] == pytest.approx(0.5)  # half way from step 2 to step 10
    assert factors == sorted(factors[:2]) + sorted(factors[2:], reverse=True)


@pytest.mark.parametrize(("round_number", "factor"), [(1, 1.0), (2, 0.5), (4, 0.125)])
def test_rates_decay_from_round_to_round(round_number: int, factor: float) -> None:
    """AdamW's first step is the learning rate, whatever the gradient's size."""
    model = untied_model()
    before = model.lm_head.weight.detach().clone()
    run(model, [Phase([head(model)], 1)], config(round_decay=0.5), round_number=round_number)
    step = (model.lm_head.weight.detach() - before).abs().max()
    assert float(step) == pytest.approx(1e-2 * factor, rel=1e-3)


def test_a_loss_that_is_not_finite_names_the_remedy() -> None:
    model = untied_model()
    with torch.no_grad():
        model.lm_head.weight.fill_(torch.inf)
    with pytest.raises(NonFiniteError, match=r"head parameters: lower the learning rate \(now"):
        run(model, [Phase([head(model)], 1)], config())


def test_progress_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "PROGRESS_INTERVAL_SECONDS", 0.0)
    model, seen = untied_model(), []
    run(model, [Phase([head(model)], 3)], config(), on_progress=seen.append)
    assert [(p.stage, p.step, p.num_steps) for p in seen] == [("training", i, 3) for i in (1, 2, 3)]


def test_no_step_changes_nothing() -> None:
    model = untied_model()
    before = model.lm_head.weight.detach().clone()
    trained = run(model, [Phase([head(model)], 0)], config())
    assert torch.equal(model.lm_head.weight, before)
    assert (trained.mean_loss, trained.num_tokens) == (None, 0)


def test_grouping_by_length_pads_less_and_still_covers_every_epoch() -> None:
    draw = random.Random(0)
    rows = [row(draw.randint(4, 60), number) for number in range(128)]

    def one_epoch(**changes: object) -> list[list[Batch]]:
        settings = config(batch_size=8, gradient_accumulation_steps=2, **changes)
        batches = endless_batches(rows, settings, OBJECTIVE.collate, "test")
        return list(itertools.islice(batches, 8))

    def padding(steps: list[list[Batch]]) -> int:
        masks = [batch["attention_mask"] for step in steps for batch in step]
        return sum(int((mask == 0).sum()) for mask in masks)

    mixed, grouped = one_epoch(), one_epoch(group_by_length=True)
    assert padding(grouped) < 0.2 * padding(mixed)
    for steps in (mixed, grouped):
        names = [int(n) for step in steps for batch in step for n in batch["input_ids"][:, 0]]
        assert sorted(names) == list(range(128))
    widths = [batch["input_ids"].shape[1] for step in grouped for batch in step]
    assert widths != sorted(widths), "short batches do not all come first"
    again = one_epoch(group_by_length=True)
    assert all(
        torch.equal(one["input_ids"], two["input_ids"])
        for a, b in zip(grouped, again, strict=True)
        for one, two in zip(a, b, strict=True)
    )


def row(length: int, first: int) -> EncodedExample:
    ids = (first, *[5] * (length - 1))
    return EncodedExample(input_ids=ids, labels=ids)
