"""Products of thin factors, B A, handled without ever forming the wide matrix.

A layer's update B A with B (out, k) and A (k, in) has k (out + in) values instead of out * in, and
sums of such updates are again of that form: factors are put side by side. What a server needs of
the sum (norm, singular values, best approximation of a smaller rank) comes from QR of the two thin
factors and an SVD of a k x k core, at O((out + in) k^2) instead of O(out in min(out, in)).

All functions work on stacks over layers and compute in fp64; factors come back in fp32.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from worker.federated.types import Tensors


@dataclass(frozen=True, slots=True)
class LowRank:
    """One product per layer: `b @ a`.

    Attributes:
        a: (layers, rank, in_features).
        b: (layers, out_features, rank).
    """

    a: torch.Tensor
    b: torch.Tensor

    @property
    def rank(self) -> int:
        """Number of columns of b; what the product's rank cannot exceed."""
        return self.a.shape[1]

    @property
    def max_rank(self) -> int:
        """The largest rank that a matrix of this shape can have."""
        return min(self.a.shape[2], self.b.shape[1])

    def times(self, factor: float) -> "LowRank":
        """The product times a number; only `a` changes."""
        return LowRank(self.a * factor, self.b)


@dataclass(frozen=True, slots=True)
class Spectrum:
    """The singular value decomposition of a product, u diag(s) v^T, fp64.

    Attributes:
        u: (layers, out_features, k) with orthonormal columns.
        s: (layers, k), falling.
        v: (layers, k, in_features) with orthonormal rows.
    """

    u: torch.Tensor
    s: torch.Tensor
    v: torch.Tensor


def joined(parts: Sequence[LowRank]) -> LowRank:
    """The sum of products, exactly: factors side by side, rank the sum of ranks; at least one."""
    return LowRank(torch.cat([p.a for p in parts], dim=1), torch.cat([p.b for p in parts], dim=2))


def difference(
    products: Mapping[str, LowRank], others: Mapping[str, LowRank]
) -> dict[str, LowRank]:
    """By role, the one minus the other, exactly; the rank is the sum of ranks."""
    return {role: joined([products[role], others[role].times(-1.0)]) for role in products}


def spectrum(product: LowRank) -> Spectrum:
    """Singular values and vectors by thin QR of both factors and an SVD of the core between them.

    k is the least of rank, in_features and out_features.
    """
    q_out, r_out = torch.linalg.qr(product.b.double())
    q_in, r_in = torch.linalg.qr(product.a.double().mT)
    u, s, v = torch.linalg.svd(r_out @ r_in.mT, full_matrices=False)
    return Spectrum(q_out @ u, s, v @ q_in.mT)


def truncated(product: LowRank, rank: int) -> LowRank:
    """The closest product of at most this rank (Eckart-Young): a = v, b = u diag(s), fp32."""
    parts = spectrum(product)
    b = parts.u[:, :, :rank] * parts.s[:, None, :rank]
    return LowRank(parts.v[:, :rank].float(), b.float())


def compact(product: LowRank) -> LowRank:
    """The same product, with no more columns than its shape can need; fp32."""
    if product.rank <= product.max_rank:
        return LowRank(product.a.float(), product.b.float())
    return truncated(product, product.max_rank)


def norm(products: Iterable[LowRank]) -> float:
    """Frobenius norm over all layers of all products."""
    return math.sqrt(sum(_squared_norm(product) for product in products))


def padded(product: LowRank, rank: int) -> LowRank:
    """The same product with zero rows and columns up to this rank, which is at least its own."""
    extra = rank - product.rank
    a = nn.functional.pad(product.a, (0, 0, 0, extra))
    return LowRank(a, nn.functional.pad(product.b, (0, extra)))


def products_of(tensors: Mapping[str, torch.Tensor]) -> dict[str, LowRank]:
    """By role, from stacked factors `A/<role>` and `B/<role>`."""
    roles = [name.removeprefix("A/") for name in tensors if name.startswith("A/")]
    return {role: LowRank(tensors[f"A/{role}"], tensors[f"B/{role}"]) for role in roles}


def factors_of(products: Mapping[str, LowRank]) -> Tensors:
    """Inverse of `products_of`."""
    a = {f"A/{role}": product.a for role, product in products.items()}
    return {**a, **{f"B/{role}": product.b for role, product in products.items()}}


def _squared_norm(product: LowRank) -> float:
    """|B A|^2 = |R_B R_A^T|^2, since the other halves of the QRs are orthonormal."""
    r_out = torch.linalg.qr(product.b.double(), mode="r").R
    r_in = torch.linalg.qr(product.a.double().mT, mode="r").R
    return float((r_out @ r_in.mT).pow(2).sum())
