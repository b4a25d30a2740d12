"""Any strategy, run on its own inside every group of clients of equal architecture.

Idea. Strategies that add up matrices need equal shapes. In a federation of several architectures
they still make fair baselines when each architecture forms a federation of its own: this wrapper
splits the members, gives every group its own server state, and leaves the rest to the wrapped
strategy, which knows nothing of groups. The result equals separate runs of the groups with the
same seed, bit for bit. A group of one client trains alone: nothing is shared with it.

State: the tensors of group k under `group/<k>/`, its values in `meta["groups"][k]`. Groups are
numbered from 0 in order of their first client id. What leaves a client is what the wrapped strategy
sends, and it meets only updates of its own group.
"""

import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from backend.contracts.compatibility import groups
from backend.contracts.strategies import Params
from worker.federated.client_round import below, take
from worker.federated.compatibility import participant_of
from worker.federated.errors import InvalidUpdateError
from worker.federated.strategy import Strategy
from worker.federated.types import (
    AggregationReport,
    ClientPlan,
    ClientUpdate,
    FederationSpec,
    LocalClient,
    Metrics,
    Refusal,
    ServerState,
    Tensors,
)
from worker.federated.wire import decode_update, encode_update


class Grouped:
    """See the module's text."""

    def __init__(self, params: Params, inner: Strategy) -> None:
        self.params = params
        self.inner = inner

    def check(self, federation: FederationSpec) -> list[Refusal]:
        """What the wrapped strategy refuses inside a group."""
        parts = self._parts(federation).values()
        return [refusal for part in parts for refusal in self.inner.check(part)]

    def init_state(self, federation: FederationSpec, seed: int) -> ServerState:
        """One state per group, all from the same seed."""
        return _joined(
            {
                key: self.inner.init_state(part, seed)
                for key, part in self._parts(federation).items()
            }
        )

    def configure_round(
        self, state: ServerState, federation: FederationSpec, round_number: int, *, deliver: bool
    ) -> dict[str, ClientPlan]:
        """The plans that each group would have on its own."""
        return {
            client_id: plan
            for key, part in self._parts(federation).items()
            for client_id, plan in self.inner.configure_round(
                _part_of(state, key), part, round_number, deliver=deliver
            ).items()
        }

    def train_client(self, plan: ClientPlan, client: LocalClient) -> ClientUpdate:
        """As the wrapped strategy does."""
        return self.inner.train_client(plan, client)

    def deliver_client(self, plan: ClientPlan, client: LocalClient, folder: Path) -> Metrics:
        """As the wrapped strategy does."""
        return self.inner.deliver_client(plan, client, folder)

    def aggregate(
        self, state: ServerState, federation: FederationSpec, updates: Iterable[ClientUpdate]
    ) -> tuple[ServerState, AggregationReport]:
        """Aggregates every group by itself; a group that sent nothing keeps its state.

        The updates of all groups come mixed and may be read only once, so they wait on disk for
        their turn: memory stays that of the wrapped strategy.

        Raises:
            InvalidUpdateError: an update from outside, none at all, or one that does not fit.
        """
        parts = self._parts(federation)
        states = {key: _part_of(state, key) for key in parts}
        reports: dict[str, AggregationReport] = {}
        with tempfile.TemporaryDirectory(prefix="fedbraid-groups-") as name:
            waiting = _sort(updates, parts, Path(name))
            for key, files in waiting.items():
                states[key], reports[key] = self.inner.aggregate(
                    states[key], parts[key], _read(files)
                )
        if not reports:
            raise InvalidUpdateError("No client sent an update: a round needs at least one.")
        return _joined(states), _report(parts, reports)

    def _parts(self, federation: FederationSpec) -> dict[str, FederationSpec]:
        """The groups as federations of their own."""
        specs = {client.client_id: client for client in federation.clients}
        members = groups(self.params, [participant_of(client) for client in federation.clients])
        return {
            str(number): FederationSpec(
                federation.global_rank, tuple(specs[member.client_id] for member in group)
            )
            for number, group in enumerate(members)
        }


def _joined(states: Mapping[str, ServerState]) -> ServerState:
    tensors: Tensors = {}
    for key, state in states.items():
        tensors.update(below(f"group/{key}", state.tensors))
    meta = {key: dict(state.meta) for key, state in states.items()}
    return ServerState(tensors=tensors, meta={"groups": meta})


def _part_of(state: ServerState, key: str) -> ServerState:
    return ServerState(take(f"group/{key}", state.tensors), state.meta["groups"][key])


def _sort(
    updates: Iterable[ClientUpdate], parts: Mapping[str, FederationSpec], folder: Path
) -> dict[str, list[Path]]:
    """Writes the updates down, and gives the files of each group that has any, in their order."""
    group_of = {client.client_id: key for key, part in parts.items() for client in part.clients}
    waiting: dict[str, list[Path]] = {}
    for number, update in enumerate(updates):
        key = group_of.get(update.client_id)
        if key is None:
            raise InvalidUpdateError(
                f"The update of client {update.client_id!r} comes from outside the federation: "
                "refuse it."
            )
        file = folder / str(number)
        file.write_bytes(encode_update(update))
        waiting.setdefault(key, []).append(file)
    return waiting


def _read(files: Iterable[Path]) -> Iterator[ClientUpdate]:
    for file in files:
        yield decode_update(file.read_bytes())


def _report(
    parts: Mapping[str, FederationSpec], reports: Mapping[str, AggregationReport]
) -> AggregationReport:
    """All values of all groups, each below its group's number."""
    values = {
        "num_groups": float(len(parts)),
        "num_clients_alone": float(sum(len(part.clients) == 1 for part in parts.values())),
        **{
            f"group_{key}/{name}": value
            for key, report in reports.items()
            for name, value in report.values.items()
        },
    }
    return AggregationReport(sum(report.num_clients for report in reports.values()), values)
