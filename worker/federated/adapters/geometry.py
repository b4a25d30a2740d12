"""Which entries of the common R x R middle matrix one client holds, and where.

All clients share middle matrices of one global rank R; a client of rank r holds r^2 of the R^2
entries (or as many as an explicit sparsity leaves). Three layouts say which ones:

- `block`: the entries whose row and column both lie in an index set I of q indices. Position keeps
  one meaning for every client and the private factors stay r-sized. Default.
- `mask`: any single entries; the private factors have R rows and T is R x R with zeros.
- `gather`: any single entries, read in order of position into a q x q matrix (published code).
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch

from worker.federated.errors import InvalidConfigError

Layout = Literal["block", "mask", "gather"]
LAYOUTS: tuple[Layout, ...] = ("block", "mask", "gather")


@dataclass(frozen=True, slots=True)
class Geometry:
    """Sizes of one client's share of the middle matrices.

    Attributes:
        layout: which entries can be held.
        rank: the client's own rank r.
        global_rank: R.
        num_kept: held entries of each R x R matrix.
    """

    layout: Layout
    rank: int
    global_rank: int
    num_kept: int

    @property
    def factor_rank(self) -> int:
        """Rows of the private factor A and columns of B."""
        return self.global_rank if self.layout == "mask" else self.rank

    @property
    def kept_rank(self) -> int:
        """Side q of the square that the held entries form (`block`, `gather`)."""
        return math.isqrt(self.num_kept)

    @property
    def scores_shape(self) -> tuple[int, ...]:
        """One score per index (`block`) or per entry."""
        one_per_index = self.layout == "block"
        return (self.global_rank,) if one_per_index else (self.global_rank, self.global_rank)

    @property
    def num_selectable(self) -> int:
        """How many scores there are: R or R^2."""
        return math.prod(self.scores_shape)

    @property
    def num_selected(self) -> int:
        """How many of the scores win."""
        return self.kept_rank if self.layout == "block" else self.num_kept

    def start_scores(self, generator: torch.Generator) -> torch.Tensor:
        """First scores, `scores_shape` fp32 in [-1, 1].

        `block`: falling with the index. Others: uniform. With one seed for a whole federation the
        masks of its clients are nested, so that they start with as much in common as their ranks
        allow.
        """
        if self.layout == "block":
            return torch.linspace(1.0, -1.0, self.global_rank)
        return torch.rand(self.scores_shape, generator=generator) * 2 - 1

    def select(self, scores: torch.Tensor) -> torch.Tensor:
        """Flat positions of the winning scores, ascending, (num_selected,) int64.

        Ties go to the smaller position, so that equal scores give equal masks everywhere.
        """
        order = torch.argsort(scores.flatten(), descending=True, stable=True)
        return order[: self.num_selected].sort().values

    def held_entries(self, selected: torch.Tensor) -> torch.Tensor:
        """Flat positions in R x R of the held entries, ascending, (num_kept,) int64."""
        if self.layout != "block":
            return selected
        return (selected[:, None] * self.global_rank + selected[None, :]).flatten()


def make_geometry(
    layout: Layout, rank: int, global_rank: int, sparsity: float | None = None
) -> Geometry:
    """Sizes from a client's rank and the share of zeros.

    Args:
        layout: see the module's text.
        rank: r, from 1 to `global_rank`.
        global_rank: R.
        sparsity: share of zeros in [0, 1); None means 1 - (r / R)^2. `block` and `gather` hold a
            square of entries, so the nearest square is taken and must fit into r x r.

    Raises:
        InvalidConfigError: a value is out of its range, or sparsity leaves more than r x r.
    """
    if layout not in LAYOUTS:
        raise InvalidConfigError(f"layout is {layout!r}: choose one of {', '.join(LAYOUTS)}.")
    if rank < 1:
        raise InvalidConfigError(f"lora_rank is {rank}: it must be at least 1.")
    if rank > global_rank:
        raise InvalidConfigError(
            f"lora_rank is {rank} but global_rank is {global_rank}: lower the client's rank or "
            "raise the global rank to the largest client rank."
        )
    if sparsity is None:
        return Geometry(layout, rank, global_rank, num_kept=rank * rank)
    if not 0 <= sparsity < 1:
        raise InvalidConfigError(f"sparsity is {sparsity}: it must be at least 0 and below 1.")
    if layout == "mask":
        num_kept = max(1, round((1 - sparsity) * global_rank**2))
        return Geometry(layout, rank, global_rank, num_kept)
    side = max(1, round(global_rank * (1 - sparsity) ** 0.5))
    if side > rank:
        raise InvalidConfigError(
            f"sparsity {sparsity} keeps a {side} x {side} block of the {global_rank} x "
            f"{global_rank} matrix, but lora_rank is {rank}: raise lora_rank to {side}, raise "
            f"sparsity to at least {1 - (rank / global_rank) ** 2:.3f}, or leave sparsity empty."
        )
    return Geometry(layout, rank, global_rank, num_kept=side * side)
