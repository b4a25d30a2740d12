"""Maps between one model's depth and the common stack of slots.

A model with L layers meets the L* slots of the federation through an *alignment* P of shape
(L*, L): slots travel *down* to layers by its transpose and layers travel *up* to slots by a left
inverse of that transpose, so that down(up(T)) = T and nothing is lost on the way (H2Tune's private
layer-relation matrix; its published code uses P on both ways without such a condition and loses
62 % of T on a 28 x 18 example).
"""

from typing import Literal

import torch

from worker.federated.errors import InvalidConfigError

AlignmentStart = Literal["interpolation", "random", "identity"]
AlignmentConstraint = Literal["orthonormal", "pseudo_inverse"]


def start_alignment(
    start: AlignmentStart,
    constraint: AlignmentConstraint,
    num_slots: int,
    num_layers: int,
    generator: torch.Generator,
) -> torch.Tensor:
    """First alignment of a client, (num_slots, num_layers) fp32.

    `interpolation` places layer j at slot j (L* - 1) / (L - 1), shared linearly between the two
    nearest slots; it is the identity when the depths agree. `random` is Gaussian. Under the
    `orthonormal` constraint the nearest matrix with orthonormal columns is taken.

    Raises:
        InvalidConfigError: more layers than slots, or `identity` with unequal depths.
    """
    if num_layers > num_slots:
        raise InvalidConfigError(
            f"num_layers is {num_layers} but the common stack has num_slots = {num_slots}: "
            "the stack must be at least as deep as the deepest model."
        )
    if start == "identity" and num_layers != num_slots:
        raise InvalidConfigError(
            f"alignment_init is 'identity' but a model has {num_layers} layers and the common "
            f"stack {num_slots}: choose 'interpolation', or clients of equal depth."
        )
    if start == "random":
        raw = torch.randn(num_slots, num_layers, generator=generator) / num_slots**0.5
    else:
        raw = interpolation(num_slots, num_layers)
    return retract(raw) if constraint == "orthonormal" else raw


def interpolation(num_slots: int, num_layers: int) -> torch.Tensor:
    """Linear interpolation by relative depth, (num_slots, num_layers) fp32; columns sum to 1."""
    matrix = torch.zeros(num_slots, num_layers)
    for layer in range(num_layers):
        depth = layer / (num_layers - 1) if num_layers > 1 else 0.5
        position = depth * (num_slots - 1)
        below = min(int(position), num_slots - 1)
        share = position - below
        matrix[below, layer] = 1.0 - share
        if share > 0:
            matrix[below + 1, layer] = share
    return matrix


def retract(alignment: torch.Tensor) -> torch.Tensor:
    """Nearest matrix with orthonormal columns (polar factor), same shape and dtype.

    Source: P = U V^T from the thin SVD of the given matrix, computed in double precision.
    """
    left, _, right = torch.linalg.svd(alignment.double(), full_matrices=False)
    polar: torch.Tensor = left @ right
    return polar.to(alignment.dtype)


def map_down(alignment: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
    """Layers from slots: T_j = sum_l P[l, j] S_l; (L*, ...) -> (L, ...)."""
    return torch.einsum("lj,l...->j...", alignment, slots)


def map_up(
    alignment: torch.Tensor, layers: torch.Tensor, constraint: AlignmentConstraint
) -> torch.Tensor:
    """Slots from layers, (L, ...) -> (L*, ...), with map_down(map_up(T)) = T.

    `orthonormal`: U_l = sum_j P[l, j] T_j. `pseudo_inverse`: the same with P (P^T P)^-1, which
    needs columns that are linearly independent.
    """
    if constraint == "pseudo_inverse":
        wide = alignment.double()
        alignment = torch.linalg.solve(wide.T @ wide, wide.T).T.to(alignment.dtype)
    return torch.einsum("lj,j...->l...", alignment, layers)


def orthonormality_error(alignment: torch.Tensor) -> float:
    """Largest entry of |P^T P - I|; 0 when the columns are orthonormal."""
    wide = alignment.detach().double()
    gram = wide.T @ wide
    return float(
        (gram - torch.eye(gram.shape[0], dtype=gram.dtype, device=gram.device)).abs().max()
    )


def row_entropy(alignment: torch.Tensor) -> float:
    """Mean entropy in nats of how each slot is spread over the layers, in [0, log L].

    A slot's share of layer j is P[l, j]^2 / sum_j P[l, j]^2. 0: every slot belongs to one layer,
    as for the identity. Slots that no layer fills are left out; without any, the result is 0.
    """
    shares = alignment.detach().double().pow(2)
    totals = shares.sum(dim=1)
    filled = shares[totals > 0] / totals[totals > 0, None]
    if len(filled) == 0:
        return 0.0
    return float(torch.special.entr(filled).sum(dim=1).mean())
