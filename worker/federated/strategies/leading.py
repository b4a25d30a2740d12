"""The first components of stacked factors: what a client of a small rank gets of a large adapter.

Component kappa of an adapter is row kappa of A with column kappa of B. Stacked factors: `A/<role>`
(layers, rank, in_features), `B/<role>` (layers, out_features, rank).
"""

from collections.abc import Mapping

import torch

from worker.federated.low_rank import LowRank, factors_of, products_of
from worker.federated.types import Tensors


def rank_of(stacked: Mapping[str, torch.Tensor]) -> int:
    """The rank of the role that has most; 0 where there is none."""
    return max((t.shape[1] for name, t in stacked.items() if name.startswith("A/")), default=0)


def leading(stacked: Mapping[str, torch.Tensor], rank: int) -> Tensors:
    """The first `rank` components of every role; all of them where there are no more."""
    return factors_of(
        {
            role: LowRank(product.a[:, :rank], product.b[:, :, :rank])
            for role, product in products_of(stacked).items()
        }
    )
