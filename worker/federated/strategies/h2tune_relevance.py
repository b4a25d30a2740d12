"""Relevance-aware aggregation: every client has slots of its own, and learns from its likes alone.

Clients whose matrices mean different things only dilute each other. So clients first train alone,
for W rounds. Then the server compares what they have found independently of each other,

    C_i = sum of U_i over the first W rounds,    z_ij = cos(C_i, C_j) sqrt(n),

over the n entries that are not zero in either. For unrelated directions z is about standard normal;
clients of one base model agree a little more, whatever their tasks. So i and j are alike if z_ij
exceeds a threshold and half of the largest z of i, and of j. Client i takes from those it is like,
and always from itself, in proportion to numbers of examples. The weights w_ij are settled once, for
later changes are not independent any more: clients that share repair the same errors, whatever
their tasks. Then and in all later rounds

    S_i <- S_i + eta sum_j w_ij U_j / sum_j w_ij h_j,

the first time with C_j for U_j. `relevance_scope` names the parts of the matrices for which z,
likeness and weights are found each by itself, n their entries: the whole, a module role, a slot of
the common stack, or a role in a slot. Who misses the first rounds gets the common slots, which are
aggregated over all clients as with `delta`.

The server keeps, beside the common slots, per client `own/<client>/<role>` and, until the weights
are settled, `moved/<client>/<role>` and `held/<client>/<role>`, (L*, R, R) fp32 each. It must see
single clients' updates, so this excludes secure aggregation.
"""

from collections.abc import Mapping
from itertools import combinations
from math import sqrt

import torch

from backend.contracts.params.h2tune import H2TuneParams
from worker.federated.client_round import below, take
from worker.federated.strategies.h2tune_server import Aggregation, read_sent
from worker.federated.types import (
    AggregationReport,
    ClientUpdate,
    FederationSpec,
    ServerState,
    Tensors,
)
from worker.federated.wire import require_finite

SHARE_OF_BEST = 0.5
"""Of a client's largest agreement, what another one must exceed to be alike."""

Weights = dict[str, dict[str, float]]
"""By receiver and source, client ids; a receiver's weights sum to 1."""

ALL = "all"
"""The name of the one part, where one set of weights serves all roles and slots."""

WeightsByPart = Mapping[str, Weights]

Change = tuple[Tensors, Tensors]
"""What a client adds to the slots and which entries it holds, (L*, R, R) by role."""


class RelevanceAggregation(Aggregation):
    """The round's sums as for `delta`, and the single updates, to be mixed for each client."""

    def __init__(
        self, params: H2TuneParams, state: ServerState, federation: FederationSpec
    ) -> None:
        super().__init__(params, state, federation)
        self._updates: dict[str, Change] = {}
        self._examples: dict[str, int] = {}

    def add(self, update: ClientUpdate) -> None:
        """Checks one client's update and adds it; see `Aggregation.add`."""
        super().add(update)
        client = self._clients[update.client_id]
        sent = read_sent(self._params, self._state, self._federation, client, update.shared)
        self._updates[update.client_id] = (sent.matrices, sent.shares)
        self._examples[update.client_id] = update.num_examples

    def result(self) -> tuple[ServerState, AggregationReport]:
        """The common slots, every client's own, and the weights behind them."""
        common, report = super().result()
        meta, values = dict(common.meta), dict(report.values)
        kept = {**meta.get("num_examples", {}), **self._examples}
        meta["num_examples"] = kept
        weights: WeightsByPart = meta.get("mixing_weights_by_part", {})
        if "mixing_weights" in meta:  # of the one part, as states have had it from the first
            weights = {ALL: meta["mixing_weights"]}
        if self._round_number < self._params.relevance_rounds:
            tensors = {**common.tensors, **self._accumulated(common.tensors)}
            alone = {client: {client: 1.0} for client in self._updates}
            by_part = {part: alone for role in self._slots for part in self._parts(role)}
            tensors.update(self._own(by_part, self._updates))
        elif not weights:
            accumulated = self._accumulated(common.tensors)
            found = _changes(accumulated)
            weights = self._settled(found, kept)
            if ALL in weights:
                meta["mixing_weights"] = weights[ALL]
            else:
                meta["mixing_weights_by_part"] = weights
            values["relevance_cosine"] = _mean_cosine(found)
            tensors = _without(common.tensors, "moved", "held", "own", "start")
            tensors.update(self._own(weights, found, start=take("start", accumulated)))
        else:
            tensors = {**common.tensors, **self._own(weights, self._updates)}
        values.update(_mean_weights(weights))
        return ServerState(tensors, meta), AggregationReport(report.num_clients, values)

    def _settled(
        self, changes: Mapping[str, Change], num_examples: Mapping[str, int]
    ) -> WeightsByPart:
        """Who learns from whom from now on, in each part by itself."""
        parts: dict[str, dict[str, Change]] = {}
        for client, (matrices, held) in changes.items():
            for role, matrix in matrices.items():
                for slot, part in enumerate(self._parts(role)):
                    mine = parts.setdefault(part, {}).setdefault(client, ({}, {}))
                    mine[0][f"{role}/{slot}"] = matrix[slot]
                    mine[1][f"{role}/{slot}"] = held[role][slot]
        threshold = self._params.relevance_threshold
        return {
            part: mixing_weights(found, num_examples, threshold)
            for part, found in sorted(parts.items())
        }

    def _parts(self, role: str) -> list[str]:
        """The part to which each slot of a role belongs."""
        slots = range(len(self._slots[role]))
        match self._params.relevance_scope:
            case "model":
                return [ALL for _ in slots]
            case "role":
                return [role for _ in slots]
            case "slot":
                return [str(slot) for slot in slots]
            case "role_in_slot":
                return [f"{role}/{slot}" for slot in slots]

    def _accumulated(self, tensors: Tensors) -> Tensors:
        """What each client has added so far, what it holds, and where all of them started."""
        added: Tensors = {}
        for client_id, (changes, shares) in self._updates.items():
            for role, change in changes.items():
                name = f"{client_id}/{role}"
                before = tensors.get(f"moved/{name}", torch.zeros_like(change))
                added[f"moved/{name}"] = (before + change).float()
                added[f"held/{name}"] = shares[role].float()
        start = take("start", tensors) or self._slots
        known = {n: t for n, t in tensors.items() if n.startswith(("moved/", "held/"))}
        return {**known, **added, **below("start", start)}

    def _own(
        self, weights: WeightsByPart, changes: Mapping[str, Change], *, start: Tensors | None = None
    ) -> Tensors:
        """Every receiver's next slots, fp32; of those that nothing reached, as they are.

        Args:
            weights: who takes how much from whom, by part.
            changes: of the clients that sent something.
            start: the slots that all add to; None: each its own.
        """
        own: Tensors = {}
        for receiver in _receivers(weights):
            for role in self._clients[receiver].modules:
                rows = [weights[part].get(receiver, {}) for part in self._parts(role)]
                sources = {
                    source: torch.tensor(
                        [row.get(source, 0.0) for row in rows], dtype=torch.float64
                    )
                    for source in changes
                    if any(source in row for row in rows)
                }
                name = f"own/{receiver}/{role}"
                old = self._state.tensors.get(name, self._slots[role])
                if start is not None:
                    old = start[role]
                new = old.double() + self._params.server_learning_rate * _mixture(
                    sources, changes, role, old
                )
                own[name] = self._controlled(role, old, new.float(), receiver)
        require_finite(own, "the aggregated state")
        return own


def mixing_weights(
    changes: Mapping[str, Change], num_examples: Mapping[str, int], threshold: float
) -> Weights:
    """Who takes how much from whom.

    Args:
        changes: of every client, found without the others.
        num_examples: by client id.
        threshold: least z of a source, in standard deviations of chance.
    """
    found: dict[str, dict[str, float]] = {client: {} for client in changes}
    for one, two in combinations(changes, 2):
        found[one][two] = found[two][one] = _agreement(changes[one], changes[two])
    bars = {
        client: max([threshold, *(SHARE_OF_BEST * z for z in agreements.values())])
        for client, agreements in found.items()
    }
    weights: Weights = {}
    for receiver, agreements in found.items():
        masses = {
            source: float(num_examples[source])
            for source in changes
            if source == receiver or agreements[source] > max(bars[receiver], bars[source])
        }
        total = sum(masses.values())
        weights[receiver] = {source: mass / total for source, mass in sorted(masses.items())}
    return weights


def _receivers(weights: WeightsByPart) -> list[str]:
    """All of them, each once."""
    return sorted({receiver for known in weights.values() for receiver in known})


def _mean_weights(weights: WeightsByPart) -> dict[str, float]:
    """`mixing_weight/<receiver>/<source>`, the mean over the parts that the receiver has."""
    found: dict[str, float] = {}
    for receiver in _receivers(weights):
        rows = [known[receiver] for known in weights.values() if receiver in known]
        for source in sorted({source for row in rows for source in row}):
            total = sum(row.get(source, 0.0) for row in rows)
            found[f"mixing_weight/{receiver}/{source}"] = total / len(rows)
    return found


def _agreement(one: Change, two: Change) -> float:
    """z: the cosine over the entries that both moved, in standard deviations of chance."""
    cosine, num_entries = _cosine(one, two)
    return cosine * sqrt(num_entries)


def _cosine(one: Change, two: Change) -> tuple[float, int]:
    inner, left, right, count = 0.0, 0.0, 0.0, 0
    for role in sorted(one[0].keys() & two[0].keys()):
        a, b = one[0][role].double(), two[0][role].double()
        both = (a != 0) & (b != 0)
        inner += float((a[both] * b[both]).sum())
        left += float(a[both].pow(2).sum())
        right += float(b[both].pow(2).sum())
        count += int(both.sum())
    size = sqrt(left * right)
    return (inner / size if size > 0 else 0.0), count


def _mean_cosine(changes: Mapping[str, Change]) -> float:
    in_order = [changes[client] for client in sorted(changes)]
    found = [_cosine(one, two)[0] for one, two in combinations(in_order, 2)]
    return sum(found) / len(found) if found else 0.0


def _mixture(
    sources: Tensors, changes: Mapping[str, Change], role: str, like: torch.Tensor
) -> torch.Tensor:
    """sum_j w_j U_j / sum_j w_j h_j of one role, fp64; zero where nobody holds the entry.

    Args:
        sources: w_j of every slot, (L*,) fp64 by client id.
        changes: U_j and h_j.
        role: of which.
        like: gives the shape, (L*, R, R).
    """
    total = torch.zeros_like(like, dtype=torch.float64)
    share = torch.zeros_like(total)
    for source, weight in sources.items():
        matrices, held = changes[source]
        if role in matrices:
            total += weight[:, None, None] * matrices[role].double()
            share += weight[:, None, None] * held[role].double()
    return total / torch.where(share > 0, share, 1.0)


def _changes(tensors: Tensors) -> dict[str, Change]:
    """`moved/<client>/<role>` and `held/<client>/<role>` by client."""
    found: dict[str, Change] = {}
    for name, tensor in take("moved", tensors).items():
        client_id, _, role = name.partition("/")
        moved, held = found.setdefault(client_id, ({}, {}))
        moved[role], held[role] = tensor, tensors[f"held/{name}"]
    return found


def _without(tensors: Tensors, *prefixes: str) -> Tensors:
    starts = tuple(f"{prefix}/" for prefix in prefixes)
    return {name: tensor for name, tensor in tensors.items() if not name.startswith(starts)}
