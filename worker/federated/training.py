"""The training loop of one client's round: phases, each with the parameter groups it trains."""

import math
import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers import PreTrainedModel

from backend.contracts.metrics import MetricName
from backend.contracts.training import TrainingConfig
from worker.federated.errors import NonFiniteError
from worker.federated.objectives.objective import Batch, Objective
from worker.federated.seeds import derive_seed, generator
from worker.federated.types import Metrics, Progress, Tensors

Penalty = Callable[[torch.Tensor, Batch], torch.Tensor]
"""A scalar from the logits at a batch's targets, (targets, classes), and the batch."""

PROGRESS_INTERVAL_SECONDS = 1.0
_MOMENTS = ("step", "exp_avg", "exp_avg_sq")


@dataclass(frozen=True, slots=True)
class Group:
    """Parameters that share one AdamW.

    Attributes:
        name: appears in error messages.
        parameters: by a name that stays the same from round to round.
        learning_rate: peak rate.
        after_step: runs after each step of this group, such as a projection.
    """

    name: str
    parameters: Mapping[str, nn.Parameter]
    learning_rate: float
    after_step: Callable[[], None] = lambda: None


@dataclass(frozen=True, slots=True)
class Phase:
    """A stretch of steps in which the given groups train and everything else is frozen.

    Attributes:
        groups: what trains.
        num_steps: optimizer steps.
        penalty: added to the loss of each step, as the mean over its micro-batches.
        before: runs once when the phase starts.
    """

    groups: Sequence[Group]
    num_steps: int
    penalty: Penalty | None = None
    before: Callable[[], None] = lambda: None


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
    per_step = config.batch_size * config.gradient_accumulation_steps
    epoch = 0
    while True:
        source = generator(*stream, "epoch", epoch)
        order = torch.randperm(len(rows), generator=source).tolist()
        for first in range(0, len(order), per_step):
            chosen = [rows[index] for index in order[first : first + per_step]]
            size = config.batch_size
            yield [collate(chosen[at : at + size]) for at in range(0, len(chosen), size)]
        epoch += 1


def train(
    model: PreTrainedModel,
    objective: Objective,
    phases: Sequence[Phase],
    batches: Iterator[list[Batch]],
    config: TrainingConfig,
    *,
    moments: Mapping[str, torch.Tensor],
    seed: int,
    on_progress: Callable[[Progress], None],
) -> Trained:
    """Runs the phases in order; on a CPU the same arguments give the same bits.

    Each step averages the cross entropy over all targets of its micro-batches, adds the
    phase's penalty, clips each group's gradient to `max_grad_norm`, and steps each group's AdamW.
    Warm-up and schedule run over a group's steps of the round. A loss or gradient that is NaN or
    infinite ends the training with `NonFiniteError`, which names what trained and the remedy.

    Args:
        model: with its adapter in place; left in evaluation mode.
        objective: what it is trained for.
        phases: what trains, and for how long.
        batches: one list of micro-batches per step.
        config: rates, clipping, precision.
        moments: AdamW's state from the client's last round, by parameter; may be empty.
        seed: of dropout.
        on_progress: called about once per second.
    """
    torch.set_flush_denormal(True)  # tiny moments would slow a CPU down tenfold
    optimizers = _make_optimizers(phases, config, moments)
    num_steps = sum(phase.num_steps for phase in phases)
    done, loss_sum, num_tokens, last_report = 0, 0.0, 0, time.monotonic()
    model.train()
    with torch.random.fork_rng(devices=_cuda_devices(model)):
        torch.manual_seed(derive_seed(seed, "dropout"))
        for phase in phases:
            if phase.num_steps == 0:
                continue
            _freeze_all_but(model, phases, phase.groups)
            phase.before()
            for _ in range(phase.num_steps):
                micro_batches = _to_device(next(batches), model.device)
                loss = _accumulate(model, objective, phase, micro_batches, config)
                for group in phase.groups:
                    optimizers[group.name].step(config.max_grad_norm)
                    group.after_step()
                done, loss_sum = done + 1, loss_sum + loss
                num_tokens += sum(int(b["attention_mask"].sum()) for b in micro_batches)
                if time.monotonic() - last_report >= PROGRESS_INTERVAL_SECONDS:
                    last_report = time.monotonic()
                    values = {MetricName.TRAIN_LOSS: loss}
                    on_progress(Progress("training", done, num_steps, values))
    model.train(mode=False)
    kept: Tensors = {name: tensor.clone() for name, tensor in moments.items()}
    for optimizer in optimizers.values():
        kept.update(optimizer.moments())
    return Trained(loss_sum / done if done else None, num_tokens, kept)


class _ScheduledAdamW:
    """AdamW over one group, with the round's learning rate schedule and named moments."""

    def __init__(
        self,
        group: Group,
        num_steps: int,
        config: TrainingConfig,
        moments: Mapping[str, torch.Tensor],
    ) -> None:
        self._group = group
        self._parameters = list(group.parameters.values())
        self._adamw = torch.optim.AdamW(
            self._parameters, lr=group.learning_rate, weight_decay=config.weight_decay
        )
        self._schedule = torch.optim.lr_scheduler.LambdaLR(
            self._adamw, lambda step: _rate_factor(step, num_steps, config)
        )
        for name, parameter in group.parameters.items():
            if f"{name}/step" in moments:
                state = {part: moments[f"{name}/{part}"].clone() for part in _MOMENTS}
                on_device = {p: t.to(parameter.device) for p, t in state.items() if p != "step"}
                self._adamw.state[parameter] = {"step": state["step"], **on_device}

    def step(self, max_grad_norm: float) -> None:
        norm = nn.utils.clip_grad_norm_(self._parameters, max_grad_norm)
        if not torch.isfinite(norm):
            raise NonFiniteError(
                f"The gradient of the {self._group.name} parameters became {norm.item()}: lower "
                f"the learning rate (now {self._group.learning_rate}) or max_grad_norm "
                f"(now {max_grad_norm})."
            )
        self._adamw.step()
        self._schedule.step()
        self._adamw.zero_grad(set_to_none=True)

    def moments(self) -> Tensors:
        return {
            f"{name}/{part}": self._adamw.state[parameter][part].detach().cpu().clone()
            for name, parameter in self._group.parameters.items()
            if parameter in self._adamw.state
            for part in _MOMENTS
        }


def _make_optimizers(
    phases: Sequence[Phase], config: TrainingConfig, moments: Mapping[str, torch.Tensor]
) -> dict[str, _ScheduledAdamW]:
    groups = {group.name: group for phase in phases for group in phase.groups}
    steps = {
        name: sum(p.num_steps for p in phases if any(g.name == name for g in p.groups))
        for name in groups
    }
    return {
        name: _ScheduledAdamW(group, steps[name], config, moments)
        for name, group in groups.items()
        if group.parameters
    }


def _rate_factor(step: int, num_steps: int, config: TrainingConfig) -> float:
    """Share of the peak rate at a step counted from 0."""
    warmup = round(config.warmup_fraction * num_steps)
    if step < warmup:
        return (step + 1) / warmup
    if config.lr_schedule == "constant":
        return 1.0
    progress = (step - warmup) / max(1, num_steps - warmup)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


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
    for batch in micro_batches:
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
    device = model.device
    return [device.index or 0] if device.type == "cuda" else []


def peak_memory_bytes(device: torch.device) -> int:
    """Highest memory in use so far: of the GPU, or of this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
