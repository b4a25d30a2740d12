"""The part of a TriLoRA adapter that all layers of a model have in common.

Symbols: L* slots, L layers, R global rank, S slots, P alignment, C scores, D one layer's change.
For layer j and role k, with the slots constant and everything else in the graph:

    T°_jk = sum_l P[l, j] S[l, k] + D_jk          (R x R)
    M_k   = 1[C_k among the highest]              straight-through: M + sigma(C) - sg(sigma(C))
    T_jk  = M_k * T°_jk, as the layout arranges it

Masks belong to a role, not to a layer: alignment mixes layers, and only masks that agree over the
layers of a model survive it, so what leaves the client is exactly as sparse as what it trains.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import nn

from worker.federated.adapters.geometry import Geometry
from worker.federated.alignment import map_down

AlignmentSharing = Literal["per_model", "per_role"]


class MiddleStack(nn.Module):
    """Slots, alignments and scores of one adapter, and the middle matrices they make.

    Attributes (by role; `all` stands for every role when alignments are shared per model):
        slots_<role>: buffer (L*, R, R), the shared state as received.
        alignment_<role>: parameter (L*, L).
        scores_<role>: parameter, `geometry.scores_shape`.
    """

    def __init__(
        self,
        geometry: Geometry,
        roles: Sequence[str],
        alignment: torch.Tensor,
        *,
        sharing: AlignmentSharing,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.geometry = geometry
        self.roles = tuple(roles)
        self.sharing = sharing
        self.num_slots, self.num_layers = alignment.shape
        rank = geometry.global_rank
        for key in self.alignment_keys:
            self.register_parameter(f"alignment_{key}", nn.Parameter(alignment.clone()))
        for role in self.roles:
            self.register_buffer(f"slots_{role}", torch.zeros(self.num_slots, rank, rank))
            scores = nn.Parameter(geometry.start_scores(generator))
            self.register_parameter(f"scores_{role}", scores)
        self._selected: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}

    @property
    def alignment_keys(self) -> tuple[str, ...]:
        """Names of the alignments: one per role, or `all`."""
        return self.roles if self.sharing == "per_role" else ("all",)

    def slots(self, role: str) -> torch.Tensor:
        """Shared state S of a role, (L*, R, R)."""
        return self.get_buffer(f"slots_{role}")

    def alignment(self, role: str) -> nn.Parameter:
        """Alignment P that serves a role, (L*, L)."""
        key = role if self.sharing == "per_role" else "all"
        return self.get_parameter(f"alignment_{key}")

    def scores(self, role: str) -> nn.Parameter:
        """Scores C of a role, `geometry.scores_shape`."""
        return self.get_parameter(f"scores_{role}")

    def selected(self, role: str) -> torch.Tensor:
        """Positions of the winning scores of a role, ascending, int64."""
        scores = self.scores(role).detach()
        known = self._selected.get(role)
        # Compared by value: a write through `.data` leaves no other trace, and sorting R x R
        # scores in every forward pass costs far more than comparing them.
        if known is not None and known[0].device == scores.device and known[0].equal(scores):
            return known[1]
        selected = self.geometry.select(scores)
        self._selected[role] = (scores.clone(), selected)
        return selected

    @torch.no_grad()
    def fix_mask(self, role: str, selected: torch.Tensor) -> None:
        """Makes the given positions the winning ones, as a mask from elsewhere demands."""
        scores = self.scores(role)
        fixed = torch.full_like(scores, -1.0)
        fixed.view(-1)[selected] = 1.0
        scores.copy_(fixed)

    def down(self, role: str, layer: int) -> torch.Tensor:
        """What the slots say to one layer: sum_l P[l, j] S[l, k], (R, R)."""
        column = self.alignment(role)[:, layer : layer + 1]
        # These matrices are tiny, and clients add them up: half precision would only add noise.
        with torch.autocast(column.device.type, enabled=False):
            return map_down(column, self.slots(role))[0]

    def middle(self, role: str, layer: int, change: torch.Tensor) -> torch.Tensor:
        """T of one layer in the client's own size, (factor_rank, factor_rank).

        Gradients reach the alignment, the scores and `change` (D, (R, R)), not the slots.
        """
        # A model on several GPUs has one stack and layers elsewhere.
        full = self.down(role, layer) + change.to(self.slots(role).device)
        selected = self.selected(role)
        scores = self.scores(role).flatten()
        if self.geometry.layout == "mask":
            soft = torch.sigmoid(scores)
            hard = torch.zeros_like(soft).index_fill(0, selected, 1.0)
            masked = (hard + (soft - soft.detach())).view_as(full) * full
            return masked.to(change.device)
        soft = torch.sigmoid(scores[selected])
        gate = 1.0 + (soft - soft.detach())
        if self.geometry.layout == "block":
            rows = full.index_select(0, selected)
            kept = rows.index_select(1, selected) * gate[:, None] * gate[None, :]
        else:
            side = self.geometry.kept_rank
            kept = (full.flatten().index_select(0, selected) * gate).view(side, side)
        missing = self.geometry.factor_rank - self.geometry.kept_rank
        square = nn.functional.pad(kept, (0, missing, 0, missing)) if missing else kept
        return square.to(change.device)

    @torch.no_grad()
    def mask(self, role: str) -> torch.Tensor:
        """Held entries of a role, (R, R) bool."""
        rank = self.geometry.global_rank
        held = self.geometry.held_entries(self.selected(role))
        mask = torch.zeros(rank * rank, dtype=torch.bool, device=held.device)
        mask[held] = True
        return mask.view(rank, rank)
