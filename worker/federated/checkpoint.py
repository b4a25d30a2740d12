"""The state of a round within: saved now and then, so that an interrupted round goes on.

A checkpoint is a flat dictionary of tensors, like all that the core gives away; it never leaves the
client. Going on from it gives, on a CPU, the very bits of a round that was never interrupted:

| Name | Meaning |
|---|---|
| `round` | int64: the seed of the round's training; tells checkpoints of other rounds apart |
| `step` | int64: optimizer steps done |
| `tokens`, `loss` | int64, float64: sums over these steps |
| `parameter/<name>` | what trains, as it is |
| `phase/<name>` | the same, as it was when the current phase began, if the phase looks back at it |
| `moment/<name>/...` | AdamW's |
| `random/cpu`, `random/cuda` | uint8: states of the generators that dropout draws from |
"""

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import nn

logger = logging.getLogger(__name__)

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class Checkpointing:
    """Whether a round saves its state, and what it goes on from.

    Attributes:
        on_checkpoint: receives the state; it should store it before it returns. None: never.
        interval_seconds: least time between two calls; 0: after every step.
        resume_from: a state of the same round of the same client; None, or one that turns out to
            be of another: from the start.
    """

    on_checkpoint: Callable[[Tensors], None] | None = None
    interval_seconds: float = 60.0
    resume_from: Tensors | None = None


NO_CHECKPOINTS = Checkpointing()


@dataclass(slots=True)
class Counts:
    """How far the round is."""

    step: int = 0
    loss_sum: float = 0.0
    num_tokens: int = 0


@dataclass(slots=True)
class Saver:
    """Calls `on_checkpoint` when it is due."""

    checkpointing: Checkpointing
    seed: int
    parameters: Mapping[str, nn.Parameter]
    device: torch.device
    phase_start: Tensors = field(default_factory=dict)
    _last: float = field(default_factory=time.monotonic)

    def remember_phase_start(self) -> None:
        """Keeps what trains as it is now; free of cost where nothing will be saved."""
        if self.checkpointing.on_checkpoint is not None:
            self.phase_start = copies(self.parameters)

    def save_when_due(self, counts: Counts, moments: Callable[[], Tensors]) -> None:
        """Saves if the interval has passed since the last time, or since the start."""
        save = self.checkpointing.on_checkpoint
        if save is None or time.monotonic() - self._last < self.checkpointing.interval_seconds:
            return
        random = {"random/cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            random["random/cuda"] = torch.cuda.get_rng_state(self.device)
        save(
            {
                "round": torch.tensor(self.seed),
                "step": torch.tensor(counts.step),
                "tokens": torch.tensor(counts.num_tokens),
                "loss": torch.tensor(counts.loss_sum, dtype=torch.float64),
                **{f"parameter/{name}": t for name, t in copies(self.parameters).items()},
                **{f"phase/{name}": t for name, t in self.phase_start.items()},
                **{f"moment/{name}": t for name, t in moments().items()},
                **random,
            }
        )
        self._last = time.monotonic()


@dataclass(frozen=True, slots=True)
class Restored:
    """What a checkpoint says."""

    counts: Counts
    parameters: Tensors
    phase_start: Tensors
    moments: Tensors
    random: Tensors

    def apply(self, parameters: Mapping[str, nn.Parameter], device: torch.device) -> None:
        """Puts parameters and generators where they were after the last saved step."""
        put(self.parameters, parameters)
        torch.set_rng_state(self.random["cpu"])
        if device.type == "cuda" and "cuda" in self.random:
            torch.cuda.set_rng_state(self.random["cuda"], device)


def restore(
    checkpoint: Tensors | None, seed: int, parameters: Mapping[str, nn.Parameter], num_steps: int
) -> Restored | None:
    """Reads a checkpoint; None where there is none, or one that does not belong to this round.

    A checkpoint only saves time, so one of another round, client or configuration is ignored, with
    a warning in the log: starting over is slower and never wrong.

    Args:
        checkpoint: as given to `on_checkpoint`.
        seed: of the round's training.
        parameters: what trains in the round.
        num_steps: of the round.
    """
    if checkpoint is None:
        return None
    problem = _misfit(checkpoint, seed, parameters, num_steps)
    if problem:
        logger.warning("the checkpoint is ignored and the round starts over: %s", problem)
        return None
    counts = Counts(int(checkpoint["step"]), float(checkpoint["loss"]), int(checkpoint["tokens"]))
    logger.info("going on after step %d of %d", counts.step, num_steps)
    parts = (_below(part, checkpoint) for part in ("parameter", "phase", "moment", "random"))
    return Restored(counts, *parts)


def _misfit(
    checkpoint: Tensors, seed: int, parameters: Mapping[str, nn.Parameter], num_steps: int
) -> str:
    """Why a checkpoint is of no use here; empty: it fits."""
    absent = {"round", "step", "tokens", "loss", "random/cpu"} - checkpoint.keys()
    if absent:
        return f"{min(absent)!r} is missing"
    if int(checkpoint["round"]) != seed:
        return "it is of another round or client"
    step = int(checkpoint["step"])
    if not 0 < step <= num_steps:
        return f"it is after step {step}, the round has {num_steps}"
    shapes = {name: parameter.shape for name, parameter in parameters.items()}
    saved = {name: tensor.shape for name, tensor in _below("parameter", checkpoint).items()}
    looked_back = {name: tensor.shape for name, tensor in _below("phase", checkpoint).items()}
    if saved != shapes or looked_back not in ({}, shapes):
        return "other parameters train"
    return ""


def _below(part: str, checkpoint: Tensors) -> Tensors:
    start = f"{part}/"
    return {n.removeprefix(start): t for n, t in checkpoint.items() if n.startswith(start)}


@torch.no_grad()
def put(tensors: Mapping[str, torch.Tensor], parameters: Mapping[str, nn.Parameter]) -> None:
    """Copies values into the parameters of the same names."""
    for name, tensor in tensors.items():
        parameters[name].copy_(tensor)


def copies(parameters: Mapping[str, nn.Parameter]) -> Tensors:
    """Values on the CPU, out of the graph."""
    return {name: p.detach().cpu().clone() for name, p in parameters.items()}
