"""The training loop of one client's round: phases, each with the parameter groups it trains."""

import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers import PreTrainedModel

from backend.contracts.metrics import MetricName
from backend.contracts.training import TrainingConfig
from worker.federated.checkpoint import (
    NO_CHECKPOINTS,
    Checkpointing,
    Counts,
    Restored,
    Saver,
    put,
    restore,
)
from worker.federated.errors import NonFiniteError
from worker.federated.memory import explained_memory, recomputed_activations
from worker.federated.objectives.objective import Batch, Objective
from worker.federated.optimizer import Group, ScheduledAdamW
from worker.federated.seeds import derive_seed, generator
from worker.federated.types import Metrics, Progress, Tensors

Penalty = Callable[[torch.Tensor, Batch], torch.Tensor]
"""A scalar from the logits at a batch's targets, (targets, classes), and the batch."""

PROGRESS_INTERVAL_SECONDS = 1.0

SORTED_STEPS = 32
"""With `group_by_length`: this many steps' examples are sorted at a time, so order stays random."""


@dataclass(frozen=True, slots=True)
class Phase:
    """A stretch of steps in which the given groups train and everything else is frozen.

    Attributes:
        groups: what trains.
        num_steps: optimizer steps.
        penalty: added to the loss of each step, as the mean over its micro-batches.
        before: runs once when the phase starts; may look at what trains, and change none of it.
    """

    groups: Sequence[Group]
    num_steps: int
    penalty: Penalty | None = None
    before: Callable[[], None] | None = None


@dataclass(frozen=True, slots=True)
class Trained:
    """What a round's training gave."""

    mean_loss: float | None  # cross entropy, nats per target; None without a step
    num_tokens: int
    moments: Tensors = field(default_factory=dict)  # AdamW's, to be given back in the next round

    def metrics(self) -> Metrics:
        """Tokens and, if there was a step, the loss."""
        loss = {} if self.mean_loss is None else {MetricName.TRAIN_LOSS: self.mean_loss}
        return {MetricName.NUM_TOKENS: float(self.num_tokens), **loss}


def num_optimizer_steps(config: TrainingConfig, num_examples: int) -> int:
    """Steps of one round: `local_steps`, or enough for `local_epochs` passes."""
    if config.local_steps is not None:
        return config.local_steps
    return config.local_epochs * steps_per_epoch(config, num_examples)


def steps_per_epoch(config: TrainingConfig, num_examples: int) -> int:
    """Steps of one pass over the data; the last one may see fewer examples."""
    return math.ceil(num_examples / (config.batch_size * config.gradient_accumulation_steps))


def endless_batches(
    rows: Sequence[Any],
    config: TrainingConfig,
    collate: Callable[[Sequence[Any]], Batch],
    *stream: int | str,
) -> Iterator[list[Batch]]:
    """The micro-batches of one step after another, each epoch in its own order.

    Args:
        rows: encoded training examples, at least one.
        config: batch size and accumulation.
        collate: makes a batch of some rows.
        stream: parts of the seed, such as run, client and round.
    """
    lengths = _lengths(rows, collate) if config.group_by_length else None
    epoch = 0
    while True:
        source = generator(*stream, "epoch", epoch)
        order = torch.randperm(len(rows), generator=source).tolist()
        for step in _steps(order, config, lengths, source):
            yield [collate([rows[index] for index in indices]) for indices in step]
        epoch += 1


def _steps(
    order: Sequence[int],
    config: TrainingConfig,
    lengths: Sequence[int] | None,
    source: torch.Generator,
) -> Iterator[list[list[int]]]:
    """Indices of the micro-batches of each step of an epoch.

    With `lengths`, stretches of the order are sorted into micro-batches of about equal length,
    which then come in random order, so that no step sees short examples only.
    """
    size = config.batch_size
    stretch = size * config.gradient_accumulation_steps * (SORTED_STEPS if lengths else 1)
    for first in range(0, len(order), stretch):
        chosen = order[first : first + stretch]
        if lengths is None:
            yield [list(chosen[at : at + size]) for at in range(0, len(chosen), size)]
            continue
        by_length = sorted(chosen, key=lambda index: lengths[index])
        batches = [by_length[at : at + size] for at in range(0, len(by_length), size)]
        mixed = [batches[i] for i in torch.randperm(len(batches), generator=source).tolist()]
        for at in range(0, len(mixed), config.gradient_accumulation_steps):
            yield mixed[at : at + config.gradient_accumulation_steps]


def _lengths(rows: Sequence[Any], collate: Callable[[Sequence[Any]], Batch]) -> list[int]:
    return [int(collate([row])["attention_mask"].sum()) for row in rows]


def train(
    model: PreTrainedModel,
    objective: Objective,
    phases: Sequence[Phase],
    batches: Iterator[list[Batch]],
    config: TrainingConfig,
    *,
    moments: Mapping[str, torch.Tensor],
    seed: int,
    round_number: int,
    on_progress: Callable[[Progress], None],
    checkpointing: Checkpointing = NO_CHECKPOINTS,
) -> Trained:
    """Runs the phases in order; on a CPU the same arguments give the same bits.

    Each step averages the cross entropy over all targets of its micro-batches, adds the phase's
    penalty, clips each group's gradient to `max_grad_norm`, and steps each group's AdamW. Warm-up
    and schedule run over a group's steps of the round. `NonFiniteError` (a loss or gradient is
    not) and `OutOfMemoryError` (the device is full) name the remedy.

    Args:
        model: with its adapter in place; left in evaluation mode.
        objective: what it is trained for.
        phases: what trains, and for how long.
        batches: one list of micro-batches per step, from the first step of the round on.
        config: rates, clipping, precision.
        moments: AdamW's state from the client's last round, by parameter; may be empty.
        seed: of dropout; one for each round.
        round_number: from 1, for rates that fall from round to round.
        on_progress: called about once per second.
        checkpointing: where the state goes now and then, and what to go on from.
    """
    torch.set_flush_denormal(True)  # tiny moments would slow a CPU down tenfold
    parameters = {n: p for phase in phases for g in phase.groups for n, p in g.parameters.items()}
    num_steps = sum(phase.num_steps for phase in phases)
    restored = restore(checkpointing.resume_from, seed, parameters, num_steps)
    counts = restored.counts if restored else Counts()
    known = {**moments, **(restored.moments if restored else {})}
    loop = _Loop(
        model=model,
        objective=objective,
        config=config,
        batches=itertools.islice(batches, counts.step, None),
        optimizers=_make_optimizers(phases, config, known, counts.step, round_number),
        rested=moments,
        counts=counts,
        saver=Saver(checkpointing, seed, parameters, model.device),
        report=_Reporter(on_progress, num_steps),
    )
    with _in_training(model, config, seed):
        if restored:
            restored.apply(parameters, model.device)
        for phase, num_left in _remaining(phases, counts.step):
            _freeze_all_but(model, phases, phase.groups)
            _begin(phase, loop.saver, restored if num_left < phase.num_steps else None)
            loop.run(phase, num_left)
    mean_loss = counts.loss_sum / counts.step if counts.step else None
    return Trained(mean_loss, counts.num_tokens, loop.moments())


@contextmanager
def _in_training(model: PreTrainedModel, config: TrainingConfig, seed: int) -> Iterator[None]:
    """Training mode, with dropout drawn from the seed alone and memory used as configured."""
    with (
        explained_memory(config),
        recomputed_activations(model, config),
        torch.random.fork_rng(devices=_cuda_devices(model)),
    ):
        torch.manual_seed(derive_seed(seed, "dropout"))
        model.train()
        yield
    model.train(mode=False)


@dataclass(slots=True)
class _Loop:
    """The steps of a round, and what they change: optimizers and counts."""

    model: PreTrainedModel
    objective: Objective
    config: TrainingConfig
    batches: Iterator[list[Batch]]  # from the first step that is left
    optimizers: Mapping[str, ScheduledAdamW]
    rested: Mapping[str, torch.Tensor]  # moments that came, for parameters that do not train
    counts: Counts
    saver: Saver
    report: "_Reporter"

    def run(self, phase: Phase, num_steps: int) -> None:
        """Steps of one phase."""
        counts = self.counts
        for _ in range(num_steps):
            micro_batches = next(self.batches)
            counts.num_tokens += sum(int(b["attention_mask"].sum()) for b in micro_batches)
            loss = _accumulate(self.model, self.objective, phase, micro_batches, self.config)
            for group in phase.groups:
                self.optimizers[group.name].step()
                group.after_step()
            counts.step, counts.loss_sum = counts.step + 1, counts.loss_sum + loss
            self.saver.save_when_due(counts, self.moments)
            self.report.step_done(counts.step, loss)

    def moments(self) -> Tensors:
        """AdamW's state of what trained, and of what rested as it came."""
        kept: Tensors = {name: tensor.clone() for name, tensor in self.rested.items()}
        for optimizer in self.optimizers.values():
            kept.update(optimizer.moments())
        return kept


@dataclass(slots=True)
class _Reporter:
    """Tells about the training, but not more often than anybody wants to know."""

    on_progress: Callable[[Progress], None]
    num_steps: int
    _last: float = field(default_factory=time.monotonic)

    def step_done(self, step: int, loss: float) -> None:
        if time.monotonic() - self._last >= PROGRESS_INTERVAL_SECONDS:
            self._last = time.monotonic()
            values = {MetricName.TRAIN_LOSS: loss}
            self.on_progress(Progress("training", step, self.num_steps, values))


def _remaining(phases: Sequence[Phase], num_done: int) -> Iterator[tuple[Phase, int]]:
    """Phases that are not over after `num_done` steps of the round, with their steps left."""
    end = 0
    for phase in phases:
        end += phase.num_steps
        num_left = min(phase.num_steps, end - num_done)
        if num_left > 0:
            yield phase, num_left


def _begin(phase: Phase, saver: Saver, restored: Restored | None) -> None:
    """Runs what comes before a phase, with the parameters that the phase began with."""
    saver.phase_start = {}
    if phase.before is None:
        return
    if restored is None:
        saver.remember_phase_start()
        phase.before()
        return
    saver.phase_start = restored.phase_start
    put(restored.phase_start, saver.parameters)
    phase.before()
    restored.apply(saver.parameters, saver.device)


def _make_optimizers(
    phases: Sequence[Phase],
    config: TrainingConfig,
    moments: Mapping[str, torch.Tensor],
    num_done: int,
    round_number: int,
) -> dict[str, ScheduledAdamW]:
    groups = {group.name: group for phase in phases for group in phase.groups}
    left = list(_remaining(phases, num_done))

    def num_steps(name: str, stretches: Sequence[tuple[Phase, int]]) -> int:
        return sum(n for phase, n in stretches if any(g.name == name for g in phase.groups))

    optimizers = {}
    for name, group in groups.items():
        if group.parameters:
            total = num_steps(name, [(phase, phase.num_steps) for phase in phases])
            done = total - num_steps(name, left)
            optimizers[name] = ScheduledAdamW(group, total, done, config, moments, round_number)
    return optimizers


def _freeze_all_but(model: nn.Module, phases: Sequence[Phase], groups: Sequence[Group]) -> None:
    every = [group for phase in phases for group in phase.groups]
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for group in [*every, *groups]:
        for parameter in group.parameters.values():
            parameter.requires_grad_(any(group.name == chosen.name for chosen in groups))


def _accumulate(
    model: PreTrainedModel,
    objective: Objective,
    phase: Phase,
    micro_batches: Sequence[Batch],
    config: TrainingConfig,
) -> float:
    """Gradients of one step; gives its cross entropy in nats per target."""
    num_targets = sum(len(objective.targets(batch)) for batch in micro_batches)
    total = 0.0
    for batch in _to_device(micro_batches, model.device):
        with _autocast(model, config):
            logits = objective.target_logits(model, batch)
        summed = functional.cross_entropy(logits.float(), objective.targets(batch), reduction="sum")
        loss = summed / num_targets
        total += loss.item()
        if phase.penalty is not None:
            loss = loss + phase.penalty(logits, batch) / len(micro_batches)
        if not torch.isfinite(loss):
            names = " and ".join(group.name for group in phase.groups)
            rates = ", ".join(str(group.learning_rate) for group in phase.groups)
            raise NonFiniteError(
                f"The training loss became {loss.item()} while training the {names} parameters: "
                f"lower the learning rate (now {rates}) or the weights of the penalties."
            )
        torch.autograd.backward(loss)
    return total


def _autocast(model: PreTrainedModel, config: TrainingConfig) -> AbstractContextManager[object]:
    device = model.device.type
    wanted = config.precision == "bf16" or (
        config.precision == "auto" and device == "cuda" and torch.cuda.is_bf16_supported()
    )
    return torch.autocast(device, dtype=torch.bfloat16) if wanted else nullcontext()


def _to_device(micro_batches: Sequence[Batch], device: torch.device) -> list[Batch]:
    return [{name: t.to(device) for name, t in batch.items()} for batch in micro_batches]


def _cuda_devices(model: PreTrainedModel) -> list[int]:
    """Every GPU that holds a part of the model: dropout draws on each of them."""
    devices = {parameter.device for parameter in model.parameters()}
    return sorted({device.index or 0 for device in devices if device.type == "cuda"})
