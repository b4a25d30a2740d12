"""AdamW over named groups of parameters, with a schedule and moments that survive the round."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from backend.contracts.training import TrainingConfig
from worker.federated.errors import NonFiniteError

MOMENTS = ("step", "exp_avg", "exp_avg_sq")


@dataclass(frozen=True, slots=True)
class Group:
    """Parameters that share one AdamW.

    Attributes:
        name: appears in error messages.
        parameters: by a name that stays the same from round to round.
        learning_rate: peak rate in round 1.
        after_step: runs after each step of this group, such as a projection.
    """

    name: str
    parameters: Mapping[str, nn.Parameter]
    learning_rate: float
    after_step: Callable[[], None] = lambda: None


class ScheduledAdamW:
    """AdamW over one group, with the round's learning rate schedule and named moments.

    Args:
        group: what it trains.
        num_steps: of this group in the round.
        num_done: how many of them were done before an interruption.
        config: schedule and weight decay.
        moments: `<parameter>/step`, `/exp_avg`, `/exp_avg_sq`; missing ones start at zero.
        round_number: from 1; each round's peak rate is `round_decay` times the last one's.
    """

    def __init__(
        self,
        group: Group,
        num_steps: int,
        num_done: int,
        config: TrainingConfig,
        moments: Mapping[str, torch.Tensor],
        round_number: int,
    ) -> None:
        self._peak = group.learning_rate * config.round_decay ** (round_number - 1)
        self._group = group
        self._num_steps = num_steps
        self._num_done = num_done
        self._config = config
        self._parameters = list(group.parameters.values())
        self._adamw = torch.optim.AdamW(
            self._parameters, lr=self._peak, weight_decay=config.weight_decay
        )
        for name, parameter in group.parameters.items():
            if f"{name}/step" in moments:
                state = {part: moments[f"{name}/{part}"].clone() for part in MOMENTS}
                on_device = {p: t.to(parameter.device) for p, t in state.items() if p != "step"}
                self._adamw.state[parameter] = {"step": state["step"], **on_device}

    def step(self) -> None:
        """Clips the group's gradient to `max_grad_norm`, steps, and clears the gradient.

        Raises:
            NonFiniteError: the gradient is not finite; nothing was changed.
        """
        max_grad_norm = self._config.max_grad_norm
        norm = nn.utils.clip_grad_norm_(self._parameters, max_grad_norm)
        if not torch.isfinite(norm):
            raise NonFiniteError(
                f"The gradient of the {self._group.name} parameters became {norm.item()}: lower "
                f"the learning rate (now {self._peak}) or max_grad_norm "
                f"(now {max_grad_norm})."
            )
        factor = rate_factor(self._num_done, self._num_steps, self._config)
        for part in self._adamw.param_groups:
            part["lr"] = self._peak * factor
        self._adamw.step()
        self._num_done += 1
        self._adamw.zero_grad(set_to_none=True)

    def moments(self) -> dict[str, torch.Tensor]:
        """Copies on the CPU, by the names that the constructor reads."""
        return {
            f"{name}/{part}": self._adamw.state[parameter][part].detach().cpu().clone()
            for name, parameter in self._group.parameters.items()
            if parameter in self._adamw.state
            for part in MOMENTS
        }


def rate_factor(step: int, num_steps: int, config: TrainingConfig) -> float:
    """Share of the round's peak rate at a step counted from 0."""
    warmup = round(config.warmup_fraction * num_steps)
    if step < warmup:
        return (step + 1) / warmup
    if config.lr_schedule == "constant":
        return 1.0
    progress = (step - warmup) / max(1, num_steps - warmup)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
