"""One client's update behind its masks: the same names and shapes, and numbers that tell nothing.

A masked tensor is int32: integers modulo 2^32 as two's complement, which is what safetensors can
carry. What does not depend on data stays as it is.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch

from backend.contracts.metrics import MetricName
from backend.contracts.strategies import Params
from worker.federated.errors import InvalidUpdateError
from worker.federated.privacy.exposure import secret_names
from worker.federated.privacy.secure_aggregation.client import SecureClient
from worker.federated.privacy.secure_aggregation.fixed_point import FixedPoint, Residues
from worker.federated.types import ClientUpdate, Tensors

SINGLE_UPDATE_METRICS = frozenset(
    {
        MetricName.SHARED_CHANGE,
        MetricName.SHARED_DRIFT,
        MetricName.CHANGE_NORM_A,
        MetricName.CHANGE_NORM_B,
        MetricName.UPDATE_NORM,
    }
)
"""What a client measures of its own update; behind masks that stays with the client too."""


def mask_update(
    update: ClientUpdate,
    params: Params,
    client: SecureClient,
    inbox: Mapping[str, bytes],
    grid: FixedPoint,
    share: float,
) -> ClientUpdate:
    """Step 3 for a whole update.

    Args:
        update: as the strategy made it; it must not leave the client.
        params: of the strategy.
        client: after steps 1 and 2.
        inbox: ciphertexts for this client, by sender.
        grid: equal for all clients.
        share: the client's part of all examples, as `exchange.public_shares` gives it.

    Returns:
        The update that may leave: its secret tensors are int32, and it tells no norm of them.

    Raises:
        ProtocolError: a value is outside the grid's range, or the inbox does not fit.
    """
    names = secret_names(params, update.shared)
    values = flat_values([update.shared[name] for name in names])
    masked = client.mask(grid.encode(values, share), inbox).values
    residues = torch.from_numpy(masked.view(np.int32))
    hidden = shaped(residues, {name: update.shared[name].shape for name in names})
    metrics = {n: value for n, value in update.metrics.items() if n not in SINGLE_UPDATE_METRICS}
    return replace(update, shared={**update.shared, **hidden}, metrics=metrics)


def flat_values(tensors: Sequence[torch.Tensor]) -> npt.NDArray[np.float64]:
    """All values in one row, (num_values,)."""
    return torch.cat([tensor.double().flatten() for tensor in tensors]).numpy()


def flat_residues(update: ClientUpdate, names: Sequence[str]) -> Residues:
    """What `mask_update` put behind masks, in one row, (num_values,).

    Raises:
        InvalidUpdateError: a tensor is not masked.
    """
    for name in names:
        if update.shared[name].dtype != torch.int32:
            raise InvalidUpdateError(
                f"In the update of client {update.client_id!r}, {name!r} is "
                f"{update.shared[name].dtype} and not masked (torch.int32): start that client with "
                "the version of the platform."
            )
    row = torch.cat([update.shared[name].flatten() for name in names])
    return row.numpy().view(np.uint32)


def shaped(row: torch.Tensor, shapes: Mapping[str, torch.Size]) -> Tensors:
    """One row cut into tensors of these shapes, in their order."""
    parts = torch.split(row, [shape.numel() for shape in shapes.values()])
    return {name: part.view(shapes[name]) for name, part in zip(shapes, parts, strict=True)}
