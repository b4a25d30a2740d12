"""Any strategy with linear aggregation, over sums that a server could not have looked into.

Idea. A weighted mean cannot tell the updates of the clients from as many copies of their mean. So
the protocol opens the mean of what is secret, every survivor's update gets that mean in place of
its own, and the wrapped strategy aggregates as ever.

Every client must hold the same entries of the same tensors: the sum of an entry that only one
client holds would be that client's value. With H2Tune that asks for equal ranks (or one sparsity
for all) and equal module roles; depths, widths, families and tasks may differ.

How the sum is opened stands behind `Opening`: simulations run the whole protocol in one process
(`simulated_opening`), the platform opens it from what clients have sent over HTTP.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Protocol

import torch

from backend.contracts.privacy import SMALLEST_SUM, SecureAggregation, threshold_of
from backend.contracts.secure_rules import entries_refusals
from backend.contracts.strategies import Params
from worker.federated.compatibility import participant_of
from worker.federated.errors import InvalidUpdateError
from worker.federated.privacy.exposure import secret_names
from worker.federated.privacy.masked_update import flat_values, shaped
from worker.federated.privacy.secure_aggregation.exchange import (
    Contribution,
    SecureMean,
    secure_mean,
)
from worker.federated.privacy.secure_aggregation.fixed_point import FixedPoint
from worker.federated.strategy import Strategy
from worker.federated.types import (
    AggregationReport,
    ClientUpdate,
    FederationSpec,
    Refusal,
    ServerState,
)
from worker.federated.wrapped import Wrapped, true_of_a_mean

Dropouts = Callable[[int], Collection[str]]
"""Client ids that go missing in a round, by its number."""


def nobody(_round_number: int) -> Collection[str]:
    """Everybody stays."""
    return ()


class Opening(Protocol):
    """The sum of one round: takes the clients' parts in, and gives their mean and no part of it."""

    def add(self, update: ClientUpdate, names: Sequence[str]) -> None:
        """Takes one update in; `names` are those of its secret tensors, equal for all."""

    def open(self) -> SecureMean:
        """The mean of those who stayed, all secret tensors in one row.

        Raises:
            ProtocolError: too few stayed, or a value is out of the agreed range.
        """


Openings = Callable[[ServerState, int], Opening]
"""Begins the sum of a round, by the state before it and its number."""


def simulated_opening(settings: SecureAggregation, dropouts: Dropouts = nobody) -> Openings:
    """The whole protocol in one process, whose messages go from hand to hand.

    Args:
        settings: of the run.
        dropouts: who goes missing when; nobody by default.
    """

    def begin(state: ServerState, round_number: int) -> Opening:
        tag = f"{state.meta.get('seed')}\x1f{round_number}"
        return _InOneProcess(settings, tag, dropouts(round_number))

    return begin


class _InOneProcess:
    def __init__(self, settings: SecureAggregation, tag: str, missing: Collection[str]) -> None:
        self._settings = settings
        self._tag = tag
        self._missing = missing
        self._contributions: dict[str, Contribution] = {}

    def add(self, update: ClientUpdate, names: Sequence[str]) -> None:
        values = flat_values([update.shared[name] for name in names])
        self._contributions[update.client_id] = Contribution(values, update.num_examples)

    def open(self) -> SecureMean:
        return secure_mean(
            self._contributions,
            FixedPoint(self._settings.value_range),
            threshold_of(self._settings, len(self._contributions)),
            self._tag,
            self._missing,
        )


class SecurelyAggregated(Wrapped):
    """See the module's text.

    Args:
        inner: made from `params`.
        params: of the strategy.
        settings: of the run.
        openings: how sums are opened.
    """

    def __init__(
        self,
        inner: Strategy,
        params: Params,
        settings: SecureAggregation,
        openings: Openings,
    ) -> None:
        super().__init__(inner, params)
        self.settings = settings
        self._openings = openings

    def check(self, federation: FederationSpec) -> list[Refusal]:
        """Besides what the wrapped strategy refuses: too few clients, or entries of one alone."""
        return [*self.inner.check(federation), *self._refusals(federation)]

    def aggregate(
        self, state: ServerState, federation: FederationSpec, updates: Iterable[ClientUpdate]
    ) -> tuple[ServerState, AggregationReport]:
        """The next state from the opened mean of those who stayed.

        Raises:
            ProtocolError: too few stayed, or a value is out of the agreed range.
            InvalidUpdateError: clients send different tensors, or the wrapped strategy refuses.
        """
        present: list[ClientUpdate] = []  # without what is secret
        shapes: dict[str, torch.Size] = {}
        names: list[str] = []
        opening: Opening | None = None
        for update in updates:
            if opening is None:
                opening = self._openings(state, update.round_number)
                names = secret_names(self.params, update.shared)
                shapes = {name: tensor.shape for name, tensor in update.shared.items()}
            _require_alike(update, shapes, present)
            opening.add(update, names)
            public = {name: t for name, t in update.shared.items() if name not in names}
            present.append(replace(update, shared=public))
        if opening is None:
            raise InvalidUpdateError("No client sent an update: a round needs at least one.")
        mean = opening.open()
        opened = shaped(
            torch.from_numpy(mean.values).float(), {name: shapes[name] for name in names}
        )
        survivors = (
            replace(update, shared={**update.shared, **opened})
            for update in present
            if update.client_id in mean.survivors
        )
        next_state, report = self.inner.aggregate(state, federation, survivors)
        values = true_of_a_mean(report)
        values["num_dropouts"] = float(mean.num_dropouts)
        values["rounding_error_bound"] = mean.error_bound
        return next_state, AggregationReport(report.num_clients, values)

    def _refusals(self, federation: FederationSpec) -> list[Refusal]:
        clients = federation.clients
        needed = threshold_of(self.settings, len(clients))
        if len(clients) < needed:
            reason = (
                f"Secure aggregation needs {needed} clients, this federation has {len(clients)}: "
                f"add clients, or lower the threshold (at least {SMALLEST_SUM})."
            )
            return [Refusal(clients[0].client_id, reason)] if clients else []
        members = [participant_of(client) for client in clients]
        return [
            Refusal(found.client_id, found.reason)
            for found in entries_refusals(self.params, members)
        ]


def _require_alike(
    update: ClientUpdate, shapes: Mapping[str, torch.Size], before: Sequence[ClientUpdate]
) -> None:
    if {name: tensor.shape for name, tensor in update.shared.items()} != shapes:
        raise InvalidUpdateError(
            f"The updates of {before[0].client_id!r} and {update.client_id!r} differ in names or "
            "shapes, so they cannot be added up behind masks: give the clients equal ranks, or "
            "leave secure aggregation out."
        )
