"""Updates of all clients in one system of coordinates, so that a server can compare them.

Strategies with linear aggregation send tensors whose entries mean the same for everybody: the
common factors of LoRA under their own names, or H2Tune's changes of the common slots. In the
latter a client holds only some of the entries: those of its mask, in slots that its layers fill.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Protocol

import torch

from backend.contracts.params.h2tune import H2TuneParams
from backend.contracts.robustness import unreadable
from backend.contracts.strategies import Params
from worker.federated.client_round import take
from worker.federated.errors import InvalidConfigError, InvalidUpdateError
from worker.federated.strategies.h2tune_server import Sent, read_sent
from worker.federated.types import ClientSpec, ClientUpdate, FederationSpec, ServerState, Tensors
from worker.federated.wire import TensorSpec, pack_entries, require_tensors


@dataclass(frozen=True, slots=True)
class Reading:
    """One client's update in the coordinates of all.

    Attributes:
        values: by name, fp32, in the shape that all have; zero where the client holds nothing.
        held: by the same names, bool, broadcastable to the shape: which entries are the client's.
    """

    values: Tensors
    held: Tensors


class Coordinates(Protocol):
    """Reads updates of one round, and writes what takes their place."""

    @property
    def reference(self) -> Tensors:
        """What a client that changes nothing would send, by name; a name that is missing: zero."""

    def read(self, update: ClientUpdate) -> Reading:
        """An update in common coordinates.

        Raises:
            InvalidUpdateError: from outside the federation, or its tensors do not fit.
        """

    def write(self, update: ClientUpdate, values: Mapping[str, torch.Tensor]) -> ClientUpdate:
        """The update with other values in the entries that its client holds, and none elsewhere."""

    def scale(self, update: ClientUpdate, factor: float) -> ClientUpdate:
        """The update with its whole change times a factor."""


def coordinates_of(params: Params, state: ServerState, federation: FederationSpec) -> Coordinates:
    """What reads the updates that follow on this state.

    A late update is measured against the present state and not against the older one that its
    client received: the present one is what it would move.

    Raises:
        InvalidConfigError: updates of this strategy cannot be compared.
    """
    reason = unreadable(params)
    if reason is not None:
        raise InvalidConfigError(reason)
    if isinstance(params, H2TuneParams):
        return _Slots(params, state, federation)
    return _Factors(state, federation)


class _Factors:
    """Whole factors: everybody sends what the state holds, all of it, under the same names."""

    def __init__(self, state: ServerState, federation: FederationSpec) -> None:
        self.reference = dict(state.tensors)
        self._clients = _by_id(federation)
        self._specs = {n: TensorSpec(tuple(t.shape)) for n, t in state.tensors.items()}

    def read(self, update: ClientUpdate) -> Reading:
        """See `Coordinates.read`."""
        _sender(self._clients, update)
        require_tensors(update.shared, self._specs, f"the update of client {update.client_id!r}")
        return Reading(update.shared, dict.fromkeys(update.shared, torch.tensor(True)))

    def write(self, update: ClientUpdate, values: Mapping[str, torch.Tensor]) -> ClientUpdate:
        """See `Coordinates.write`."""
        return replace(update, shared={name: values[name].float() for name in update.shared})

    def scale(self, update: ClientUpdate, factor: float) -> ClientUpdate:
        """See `Coordinates.scale`."""
        scaled = {}
        for name, tensor in update.shared.items():
            start = self.reference[name].double()
            scaled[name] = (start + factor * (tensor.double() - start)).float()
        return replace(update, shared=scaled)


class _Slots:
    """H2Tune's changes of the common slots, (L*, R, R) by role."""

    def __init__(
        self, params: H2TuneParams, state: ServerState, federation: FederationSpec
    ) -> None:
        self.reference: Tensors = {}
        self._params = params
        self._state = state
        self._federation = federation
        self._clients = _by_id(federation)

    def read(self, update: ClientUpdate) -> Reading:
        """See `Coordinates.read`."""
        sent = self._sent(update)
        values = {role: matrix.float() for role, matrix in sent.matrices.items()}
        return Reading(values, {role: share > 0 for role, share in sent.shares.items()})

    def write(self, update: ClientUpdate, values: Mapping[str, torch.Tensor]) -> ClientUpdate:
        """See `Coordinates.write`."""
        sent = self._sent(update)
        shared = dict(update.shared)
        for role, held in sent.positions.items():
            own = values[role] * (sent.shares[role] > 0)
            shared[f"values/{role}"] = pack_entries(own.float(), held)
        return replace(update, shared=shared)

    def scale(self, update: ClientUpdate, factor: float) -> ClientUpdate:
        """See `Coordinates.scale`."""
        scaled = {
            f"values/{role}": (tensor.double() * factor).float()
            for role, tensor in take("values", update.shared).items()
        }
        return replace(update, shared={**update.shared, **scaled})

    def _sent(self, update: ClientUpdate) -> Sent:
        client = _sender(self._clients, update)
        return read_sent(self._params, self._state, self._federation, client, update.shared)


def change_norm(reading: Reading, reference: Mapping[str, torch.Tensor]) -> float:
    """Euclidean norm of a client's change of all shared tensors together."""
    squared = 0.0
    for name, tensor in reading.values.items():
        change = tensor.double()
        if name in reference:
            change = change - reference[name].double()
        squared += float(change.pow(2).sum())
    return math.sqrt(squared)


def _by_id(federation: FederationSpec) -> dict[str, ClientSpec]:
    return {client.client_id: client for client in federation.clients}


def _sender(clients: Mapping[str, ClientSpec], update: ClientUpdate) -> ClientSpec:
    client = clients.get(update.client_id)
    if client is None:
        raise InvalidUpdateError(
            f"the update of client {update.client_id!r} comes from outside the federation: "
            "refuse it."
        )
    return client
