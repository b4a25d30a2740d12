"""Conflicts between the changes of different clients, found and taken out before they are added up.

Two clients may pull one shared matrix in opposite directions. Every rule here works on *units*
(one shared matrix each), since a client may agree with the others about one layer and not about
the next. For unit u, client i with weight p_i, change d_i and held entries h_i (0 or 1):

    mean(d) = sum_i p_i d_i / sum_i p_i h_i               entry by entry; 0 where nobody holds it
    cmga:     g = mean(d);   <d_i, g> < 0  =>  d_i <- d_i - <d_i, g_i> g_i / |g_i|^2,   g_i = h_i g
    pairwise: for every j, the worst first:
              <d_i, d_j> < 0  =>  d_i <- d_i - <d_i, d_j'> d_j' / |d_j'|^2,   d_j' = h_i d_j

Sources: CMGA is named in the abstract of HeteroTune (arXiv 2411.16796v2) only, so this is a
reconstruction; pairwise is PCGrad (Yu et al., arXiv 2001.06782) with a fixed order instead of a
random one, so that clients may come in any order.

Worth knowing: where all clients hold all of a unit, cmga never turns the mean, it only lengthens
it, mean(d') = (1 + sum_conflicting p_i |<d_i, g>| / |g|^2) g with weights that sum to 1. It gives
back the length that opposed clients took away, and by no more than the longest change.
"""

from dataclasses import dataclass
from typing import Literal

import torch

ConflictRule = Literal["none", "cmga", "pairwise"]


@dataclass(frozen=True, slots=True)
class Resolved:
    """Changes without conflicts, and how many there were."""

    changes: torch.Tensor  # (clients, units, entries)
    num_conflicts: int
    num_compared: int  # (client, unit) with cmga, (pair of clients, unit) with pairwise

    @property
    def conflict_rate(self) -> float:
        """Share of what was compared that was in conflict, in [0, 1]."""
        return self.num_conflicts / self.num_compared if self.num_compared else 0.0


def mean_change(changes: torch.Tensor, held: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """The weighted mean over those who hold an entry, (units, entries).

    Args:
        changes: (clients, units, entries), zero where an entry is not held.
        held: 0 or 1, shape of `changes`.
        weights: (clients,), positive, any sum.
    """
    shares = weights[:, None, None]
    total, mass = (shares * changes).sum(dim=0), (shares * held).sum(dim=0)
    return total / torch.where(mass > 0, mass, 1.0)


def resolve(
    rule: ConflictRule, changes: torch.Tensor, held: torch.Tensor, weights: torch.Tensor
) -> Resolved:
    """The clients' changes after a rule; `none` and a single client leave them as they are.

    Args:
        rule: see the module's text.
        changes: (clients, units, entries), best in fp64.
        held: 0 or 1, shape of `changes`.
        weights: (clients,), positive.
    """
    match rule:
        case "none":
            return Resolved(changes, 0, 0)
        case "cmga":
            return align_with_mean(changes, held, weights)
        case "pairwise":
            return align_pairwise(changes, held)


def align_with_mean(changes: torch.Tensor, held: torch.Tensor, weights: torch.Tensor) -> Resolved:
    """Takes out of every change what points against the mean: then <d_i, mean(d)> >= 0 for all.

    Args:
        changes: (clients, units, entries).
        held: 0 or 1, shape of `changes`.
        weights: (clients,), positive.
    """
    reference = mean_change(changes, held, weights) * held
    along = (changes * reference).sum(dim=-1)
    conflicts = along < 0
    factor = torch.where(conflicts, along / _squared_norm(reference), 0.0)
    moved = int((changes != 0).any(dim=-1).sum())
    return Resolved(changes - factor[..., None] * reference, int(conflicts.sum()), moved)


def align_pairwise(changes: torch.Tensor, held: torch.Tensor) -> Resolved:
    """Takes out of every change what points against another client's change, the worst first.

    Args:
        changes: (clients, units, entries).
        held: 0 or 1, shape of `changes`.
    """
    units = torch.arange(changes.shape[1])
    inner = torch.einsum("iun,jun->iju", changes, changes)
    norms = changes.norm(dim=-1)
    cosines = inner / (norms[:, None] * norms[None, :]).clamp_min(torch.finfo(norms.dtype).tiny)
    resolved = []
    for number, change in enumerate(changes):
        cleaned = change
        for partners in cosines[number].argsort(dim=0, stable=True):
            other = changes[partners, units] * held[number]
            along = (cleaned * other).sum(dim=-1)
            against = (along < 0) & (partners != number)
            factor = torch.where(against, along / _squared_norm(other), 0.0)
            cleaned = cleaned - factor[:, None] * other
        resolved.append(cleaned)
    moved = (norms > 0).long()
    compared = (moved.sum(dim=0) * (moved.sum(dim=0) - 1) // 2).sum()
    conflicts = (inner < 0).sum() // 2
    return Resolved(torch.stack(resolved), int(conflicts), int(compared))


class ChangeMean:
    """The mean change of one round, client by client, with the conflicts that a rule takes out.

    Without a rule the memory is that of one client; a rule has to see all changes at once. Sums are
    in fp64, so that the order of clients is irrelevant.
    """

    def __init__(self, rule: ConflictRule) -> None:
        self._rule = rule
        self._kept: list[tuple[torch.Tensor, torch.Tensor, float]] = []
        self._total = torch.zeros((), dtype=torch.float64)
        self._mass = torch.zeros((), dtype=torch.float64)

    def add(self, change: torch.Tensor, held: torch.Tensor, weight: float) -> None:
        """Adds one client's change, (units, entries), and which entries it holds (0 or 1)."""
        change, held = change.double(), held.double()
        if self._rule == "none":
            self._total = self._total + weight * change
            self._mass = self._mass + weight * held
        else:
            self._kept.append((change, held, weight))

    def result(self) -> tuple[torch.Tensor, Resolved | None]:
        """The mean change, (units, entries) fp64, and what the rule did, if there is one.

        At least one client must have been added.
        """
        if self._rule == "none":
            return self._total / torch.where(self._mass > 0, self._mass, 1.0), None
        changes = torch.stack([change for change, _, _ in self._kept])
        held = torch.stack([held for _, held, _ in self._kept])
        weights = torch.tensor([weight for _, _, weight in self._kept], dtype=torch.float64)
        resolved = resolve(self._rule, changes, held, weights)
        return mean_change(resolved.changes, held, weights), resolved


def _squared_norm(vectors: torch.Tensor) -> torch.Tensor:
    """|v|^2 over the last dimension, 1 where v is zero: nothing is projected onto zero."""
    squared = vectors.pow(2).sum(dim=-1)
    return torch.where(squared > 0, squared, 1.0)
