"""H2Tune without sharing: a control that has the shape and nothing from others.

Every client goes on from its own changes, as if it were the only member of the federation. What it
gains over plain LoRA alone is owed to the parametrisation.

The server keeps `own/<client>/<role>`, (L*, R, R) fp32; the common slots stay as they began, so
that who comes late starts where all started.
"""

from backend.contracts.params.h2tune import H2TuneParams
from worker.federated.client_round import below, take
from worker.federated.strategies.h2tune_server import Aggregation
from worker.federated.types import (
    AggregationReport,
    ClientUpdate,
    FederationSpec,
    ServerState,
    Tensors,
)


class AloneAggregation:
    """An aggregation of each client's update by itself; the report is that of all together."""

    def __init__(
        self, params: H2TuneParams, state: ServerState, federation: FederationSpec
    ) -> None:
        # Mixing by relevance and resolving conflicts need others; of one client both are `delta`.
        delta = params.aggregation == "relevance"
        changed = {"aggregation": "delta"} if delta else {}
        self._params = params.model_copy(update={**changed, "conflict": "none"})
        self._state = state
        self._federation = federation
        self._together = Aggregation(self._params, state, federation)
        self._own: Tensors = {}

    def add(self, update: ClientUpdate) -> None:
        """Checks one client's update, and adds it to the client's own slots alone."""
        self._together.add(update)
        kept = take(f"own/{update.client_id}", self._state.tensors)
        before = ServerState({**self._state.tensors, **below("slots", kept)}, self._state.meta)
        single = Aggregation(self._params, before, self._federation)
        single.add(update)
        after, _ = single.result()
        (client,) = (c for c in self._federation.clients if c.client_id == update.client_id)
        for role in client.modules:
            self._own[f"own/{client.client_id}/{role}"] = after.tensors[f"slots/{role}"]

    def result(self) -> tuple[ServerState, AggregationReport]:
        """Every client's own slots, with the masks that were sent; `Aggregation.result` refuses."""
        common, report = self._together.result()
        start = below("slots", take("slots", self._state.tensors))
        return ServerState({**common.tensors, **start, **self._own}, common.meta), report
