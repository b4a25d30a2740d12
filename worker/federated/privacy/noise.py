"""Clipping a change and adding noise: the Gaussian mechanism on one client's shared tensors.

Dwork and Roth, Algorithmic Foundations of Differential Privacy, 2014, appendix A; the clipping is
that of Abadi et al. 2016, applied once to a whole round. The noise is computed in floating point:
rounding may tell a patient observer about the last bits (Mironov 2012), which `docs/limits.md`
says too.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from backend.contracts.privacy import DifferentialPrivacy
from worker.federated.privacy.keystream import gaussian
from worker.federated.types import Tensors


@dataclass(frozen=True, slots=True)
class Release:
    """What may leave the client, and the norm that only the client may know."""

    tensors: Tensors
    change_norm: float  # before clipping


def release(
    values: Mapping[str, torch.Tensor],
    references: Mapping[str, torch.Tensor],
    settings: DifferentialPrivacy,
    key: bytes,
) -> Release:
    """Reference + clip(value - reference) + N(0, (z C)^2), over all tensors together.

    Args:
        values: of the client, floating point on the CPU.
        references: under the same names and in the same shapes, known to the server.
        settings: z and C.
        key: of the noise, used for nothing else.
    """
    names = sorted(values)
    changes = {name: values[name].double() - references[name].double() for name in names}
    norm = sum(float(change.pow(2).sum()) for change in changes.values()) ** 0.5
    scale = min(1.0, settings.clip_norm / norm) if norm > 0 else 1.0
    deviation = settings.noise_multiplier * settings.clip_norm
    noise = gaussian(key, sum(change.numel() for change in changes.values()))
    noises = torch.split(noise, [changes[name].numel() for name in names])
    tensors: Tensors = {}
    for name, part in zip(names, noises, strict=True):
        noised = scale * changes[name] + deviation * part.view_as(changes[name])
        tensors[name] = (references[name].double() + noised).to(values[name].dtype)
    return Release(tensors, norm)
