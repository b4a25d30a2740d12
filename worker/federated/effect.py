"""Factors that write a code by its effect: B moves what the model finally says.

Idea. The covariance of an output with code c (`gauge.gauged_factors`) tells what the output looks
like for texts with more of c. What a model goes on to make of that is its own affair: between
models of which no weight is alike, gradients of T agreed no better than chance (docs/results.md).
So B follows the effect instead. The last hidden states of a text give its *summary* e, a regression
reads the codes off it, f = F (e - mean), and with an offset v_j added to the output of linear j at
every token,

    J_j = mean over units of df / dv_j  (R, out_j),    B_j = s J_j^T,    s = R / sum_j |J_j|^2.

To first order, T_j then changes the final codes by J_j B_j T_j A_j x, whatever the model's family,
depth, width and rotation. With s, one unit of T on the diagonal of every linear moves each code by
one standard deviation in the mean: steps of T are of one size in all models.

One set of codes serves all linears: what the models' summaries have in common, or the principal
components of a public model.

Cost: R backward passes over `EFFECT_UNITS` units, once for each client.
"""

from collections.abc import Callable, Iterable

import torch
from torch import nn
from torch.nn import functional
from transformers import PreTrainedModel

from worker.federated.gauge import Factors, reading_factor, record
from worker.federated.probes import ProbeBatch
from worker.federated.roles import adapted_modules

Hook = Callable[[nn.Module, tuple[torch.Tensor, ...], torch.Tensor], torch.Tensor]

EFFECT_UNITS = 128
"""At least so many units are behind a mean effect, or all that there are."""


@torch.no_grad()
def summaries(model: PreTrainedModel, batches: Iterable[ProbeBatch]) -> torch.Tensor:
    """What a frozen base model finally says of each unit.

    Args:
        model: in evaluation mode.
        batches: the probe texts in this model's tokens.

    Returns:
        Means of the last hidden states over the tokens of a unit, scaled to length one:
        (units, width) fp32 on the CPU.
    """
    return torch.cat([_summary(model, batch).cpu() for batch in batches])


def effects(
    model: PreTrainedModel, batches: Iterable[ProbeBatch], reader: torch.Tensor
) -> dict[str, torch.Tensor]:
    """How far each code of the summary moves when a linear's output is shifted at every token.

    Args:
        model: a frozen base model in evaluation mode.
        batches: probe texts; the first `EFFECT_UNITS` units are read.
        reader: F, reads the codes off a summary, (R, width).

    Returns:
        J by module name, (R, out_features) fp32 on the CPU, the mean over units.
    """
    shifts = {
        module.name: torch.zeros(module.out_features, device=model.device, requires_grad=True)
        for module in adapted_modules(model)
    }
    found = {name: torch.zeros(len(reader), len(shift)) for name, shift in shifts.items()}
    handles = [
        model.get_submodule(name).register_forward_hook(_shifted(shift))
        for name, shift in shifts.items()
    ]
    num_units = 0
    try:
        for batch in batches:
            read = _summary(model, batch) @ reader.T.to(model.device)
            for code in range(len(reader)):
                moved = torch.autograd.grad(
                    read[:, code].sum(),
                    list(shifts.values()),
                    retain_graph=code + 1 < len(reader),
                    materialize_grads=True,
                )
                for name, gradient in zip(shifts, moved, strict=True):
                    found[name][code] += gradient.cpu()
            num_units += len(read)
            if num_units >= EFFECT_UNITS:
                break
    finally:
        for handle in handles:
            handle.remove()
    return {name: total / num_units for name, total in found.items()}


def effect_factors(
    model: PreTrainedModel, read: Callable[[], Iterable[ProbeBatch]], codes: torch.Tensor
) -> dict[str, Factors]:
    """A reads the codes off every linear's input, B moves the model's summary by them.

    Args:
        model: a frozen base model in evaluation mode.
        read: gives the probe texts in this model's tokens, anew at each call.
        codes: G of all sides, (n, R).

    Returns:
        By module name, in the order of `roles.adapted_modules`.
    """
    inputs = {name: seen.inputs for name, seen in record(model, read()).items()}
    reader = reading_factor(summaries(model, read()), codes)
    found = effects(model, read(), reader)
    total = sum(float(effect.pow(2).sum()) for effect in found.values())
    scale = len(reader) / max(total, torch.finfo(torch.float32).tiny)
    return {
        name: Factors(reading_factor(seen, codes), (scale * found[name].T).contiguous())
        for name, seen in inputs.items()
    }


def _summary(model: PreTrainedModel, batch: ProbeBatch) -> torch.Tensor:
    inputs = {name: tensor.to(model.device) for name, tensor in batch.inputs.items()}
    hidden = model.base_model(**inputs).last_hidden_state.float()
    pooled = batch.pooling.to(hidden.device) @ hidden.flatten(0, 1)
    return functional.normalize(pooled, dim=-1)


def _shifted(shift: torch.Tensor) -> Hook:
    def hook(_: nn.Module, given: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        return output + shift.to(output)

    return hook
