"""H2Tune on the server's side: many clients' matrices into the next slots, one client at a time."""

from dataclasses import dataclass

import torch

from backend.contracts.params.h2tune import H2TuneParams
from worker.federated.adapters.geometry import make_geometry
from worker.federated.client_round import take
from worker.federated.cmga import ChangeMean, Resolved
from worker.federated.errors import InvalidUpdateError
from worker.federated.seeds import generator
from worker.federated.types import (
    AggregationReport,
    ClientSpec,
    ClientUpdate,
    FederationSpec,
    ServerState,
    Tensors,
)
from worker.federated.wire import (
    TensorSpec,
    require_finite,
    require_tensors,
    unpack_entries,
    unpack_mask,
)

HOLDING_THRESHOLD = 0.1
"""Share of a slot from which on a client counts as holding it.

Below it a client says next to nothing about the slot, and counting it would only dilute the changes
of those who do.
"""


def sends_changes(params: H2TuneParams) -> bool:
    """Whether clients send what they changed, not the matrices themselves."""
    return params.aggregation in {"delta", "relevance"}


@dataclass(frozen=True, slots=True)
class Sent:
    """One client's update in the coordinates that all share, by role."""

    matrices: Tensors  # (L*, R, R) fp64, zero where the client holds nothing
    shares: Tensors  # (L*, R, R) fp64 in [0, 1]: how far an entry counts as held
    positions: Tensors  # of the held entries in the flat R x R, ascending, (num_kept,) int64


def read_sent(
    params: H2TuneParams,
    state: ServerState,
    federation: FederationSpec,
    client: ClientSpec,
    shared: Tensors,
) -> Sent:
    """Checks what a client shared, and puts it where it belongs in the common stack.

    Args:
        params: of the run.
        state: that the client received, with its mask unless it sends one.
        federation: which the client is of.
        client: who sent it.
        shared: of its update.

    Raises:
        InvalidUpdateError: masks are missing, or tensors do not fit.
    """
    origin = f"the update of client {client.client_id!r}"
    rank, num_slots = federation.global_rank, federation.num_slots
    geometry = make_geometry(params.layout, client.lora_rank, rank, params.sparsity)
    keys = client.modules if params.alignment_sharing == "per_role" else ("all",)
    masks = take("mask", shared) or take(f"mask/{client.client_id}", state.tensors)
    expected = {
        **{f"values/{r}": TensorSpec((num_slots, geometry.num_kept)) for r in client.modules},
        **{f"coverage/{key}": TensorSpec((num_slots,)) for key in keys},
    }
    values = {name: t for name, t in shared.items() if not name.startswith("mask/")}
    require_tensors(values, expected, origin)
    if masks.keys() != set(client.modules):
        raise InvalidUpdateError(
            f"In {origin}, masks are given for {sorted(masks)}, expected one for each of "
            f"{sorted(client.modules)}: the client must send them until they are fixed."
        )
    sent = Sent({}, {}, {})
    for role, packed in masks.items():
        selected = unpack_mask(packed, geometry.num_selectable, geometry.num_selected, origin)
        held = geometry.held_entries(selected)
        key = role if params.alignment_sharing == "per_role" else "all"
        ones = torch.ones(num_slots, geometry.num_kept, dtype=torch.float64)
        coverage = shared[f"coverage/{key}"].double()[:, None, None]
        if sends_changes(params):  # all or nothing
            coverage = (coverage >= HOLDING_THRESHOLD).double()
        sent.matrices[role] = unpack_entries(shared[f"values/{role}"].double(), held, rank)
        sent.shares[role] = unpack_entries(ones, held, rank) * coverage
        sent.positions[role] = held
    return sent


class Aggregation:
    """Running sums of one round, in double precision so that the order of clients is irrelevant.

    With weights p_i proportional to the numbers of examples of the clients that have the role:

    - delta: S <- S + eta sum_i p_i U_i / sum_i p_i h_i, with h_i = 1 where the client holds the
      entry and at least `HOLDING_THRESHOLD` of the slot. Where nobody does, the divisor is 1.
      Conflicts between the U_i are taken out first, per role and slot (`worker.federated.cmga`).
    - relevance: the same, and slots for each client (`h2tune_relevance`).
    - mean: S <- sum_i p_i U_i.
    - coverage: S <- sum_i p_i U_i / sum_i p_i c_i, with c_i the share of the slot times the mask;
      entries that nobody covers stay as they are.
    """

    def __init__(
        self, params: H2TuneParams, state: ServerState, federation: FederationSpec
    ) -> None:
        self._params = params
        self._state = state
        self._federation = federation
        self._clients = {client.client_id: client for client in federation.clients}
        self._slots = take("slots", state.tensors)
        self._sums = {role: torch.zeros_like(s).double() for role, s in self._slots.items()}
        self._shares = {role: torch.zeros_like(s).double() for role, s in self._slots.items()}
        self._weights = dict.fromkeys(self._slots, 0)
        self._masks: Tensors = {}
        self._directions = {role: torch.zeros_like(s).double() for role, s in self._slots.items()}
        self._changes = {role: ChangeMean(params.conflict) for role in self._slots}
        self._resolved: list[Resolved] = []
        self._seen: list[str] = []
        self._round_number = 0

    def add(self, update: ClientUpdate) -> None:
        """Checks one client's update and adds it.

        Raises:
            InvalidUpdateError: unknown or repeated client, no examples, or tensors that do not fit.
        """
        client = self._clients.get(update.client_id)
        origin = f"the update of client {update.client_id!r}"
        if client is None:
            raise InvalidUpdateError(f"{origin} comes from outside the federation: refuse it.")
        if update.client_id in self._seen:
            raise InvalidUpdateError(f"{origin} came twice in one round: keep only one.")
        if update.num_examples < 1:
            raise InvalidUpdateError(f"{origin} states {update.num_examples} examples: need 1.")
        sent = read_sent(self._params, self._state, self._federation, client, update.shared)
        matrices, shares = sent.matrices, sent.shares
        for role, packed in take("mask", update.shared).items():
            self._masks[f"mask/{client.client_id}/{role}"] = packed
        changes = {
            role: self._change(role, matrix, shares[role]) for role, matrix in matrices.items()
        }
        norm = sum(float(change.pow(2).sum()) for change in changes.values()) ** 0.5
        for role, matrix in matrices.items():
            self._sums[role] += update.num_examples * matrix
            self._shares[role] += update.num_examples * shares[role]
            self._weights[role] += update.num_examples
            if self._params.conflict != "none":
                flat, held = matrix.flatten(1), shares[role].flatten(1)
                self._changes[role].add(flat, held, update.num_examples)
            self._directions[role] += changes[role] / norm if norm > 0 else 0.0
        self._round_number = update.round_number
        self._seen.append(update.client_id)

    def result(self) -> tuple[ServerState, AggregationReport]:
        """The next state and what happened.

        Raises:
            InvalidUpdateError: nobody sent anything, or the result is not finite.
        """
        if not self._seen:
            raise InvalidUpdateError("No client sent an update: a round needs at least one.")
        slots = {
            role: self._controlled(role, old, self._next(role)) if self._weights[role] else old
            for role, old in self._slots.items()
        }
        require_finite(slots, "the aggregated state")
        tensors = dict(self._state.tensors)
        tensors.update({f"slots/{role}": matrix for role, matrix in slots.items()})
        tensors.update(self._masks)
        next_state = ServerState(tensors=tensors, meta=dict(self._state.meta))
        return next_state, self._report(slots)

    def _change(self, role: str, matrix: torch.Tensor, share: torch.Tensor) -> torch.Tensor:
        if sends_changes(self._params):
            return matrix
        return (matrix - self._slots[role]) * (share > 0)

    def _next(self, role: str) -> torch.Tensor:
        """The aggregated slots of one role, fp32, before any control."""
        old, weight = self._slots[role].double(), self._weights[role]
        total, share = self._sums[role] / weight, self._shares[role] / weight
        match self._params.aggregation:
            case "delta" if self._params.conflict != "none":
                mean_change, resolved = self._changes[role].result()
                if resolved is not None:
                    self._resolved.append(resolved)
                new = old + self._params.server_learning_rate * mean_change.view_as(old)
            case "delta" | "relevance":
                mean_change = total / torch.where(share > 0, share, 1.0)
                new = old + self._params.server_learning_rate * mean_change
            case "mean":
                new = total
            case "coverage":
                new = torch.where(share > 0, total / torch.where(share > 0, share, 1.0), old)
        return new.float()

    def _controlled(
        self, role: str, old: torch.Tensor, new: torch.Tensor, *stream: str
    ) -> torch.Tensor:
        """The new slots as they are, or with a change that carries no meaning (negative controls).

        The change keeps its size: `permuted` shuffles the entries of each slot's change, `noise`
        draws it anew with the same norm.
        """
        if self._params.control in {"none", "alone"}:
            return new
        change = (new - old).flatten(1)
        source = generator(self._state.meta["seed"], "control", self._round_number, role, *stream)
        if self._params.control == "permuted":
            order = torch.rand(change.shape, generator=source).argsort(dim=1)
            change = change.gather(1, order)
        else:
            noise = torch.randn(change.shape, generator=source)
            change = noise * (change.norm(dim=1) / noise.norm(dim=1))[:, None]
        return old + change.view_as(old)

    def _report(self, slots: Tensors) -> AggregationReport:
        before = sum(float(slot.double().pow(2).sum()) for slot in self._slots.values()) ** 0.5
        changed = sum(
            float((slots[role] - old).double().pow(2).sum()) for role, old in self._slots.items()
        )
        values = {"relative_change": changed**0.5 / before if before > 0 else 0.0}
        num = len(self._seen)
        if num > 1:
            # |sum of unit vectors|^2 = N + 2 sum over pairs of their cosine.
            joint = sum(float(d.pow(2).sum()) for d in self._directions.values())
            values["update_cosine"] = (joint - num) / (num * (num - 1))
        compared = sum(resolved.num_compared for resolved in self._resolved)
        if compared:
            conflicts = sum(resolved.num_conflicts for resolved in self._resolved)
            values["conflict_rate"] = conflicts / compared
        return AggregationReport(num_clients=num, values=values)
