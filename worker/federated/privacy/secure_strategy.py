"""Any strategy with linear aggregation, over sums that a server could not have looked into.

Idea. A weighted mean cannot tell the updates of the clients from as many copies of their mean. So
the protocol opens the mean of what is secret, every survivor's update gets that mean in place of
its own, and the wrapped strategy aggregates as ever.

Every client must hold the same entries of the same tensors: the sum of an entry that only one
client holds would be that client's value. With H2Tune that asks for equal ranks (or one sparsity
for all) and equal module roles; depths, widths, families and tasks may differ.

For simulations: here clients and server live in one process and exchange the protocol's messages;
over HTTP, `backend` refuses runs that ask for it.
"""

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from backend.contracts.params.h2tune import H2TuneParams
from backend.contracts.params.heterotune import HeteroTuneParams
from backend.contracts.privacy import SecureAggregation
from backend.contracts.strategies import Params
from worker.federated.errors import InvalidUpdateError
from worker.federated.privacy.exposure import secret_names
from worker.federated.privacy.secure_aggregation.exchange import Contribution, secure_mean
from worker.federated.privacy.secure_aggregation.fixed_point import FixedPoint
from worker.federated.strategy import Strategy
from worker.federated.types import (
    AggregationReport,
    ClientPlan,
    ClientSpec,
    ClientUpdate,
    FederationSpec,
    LocalClient,
    Metrics,
    Refusal,
    ServerState,
    Tensors,
)

SMALLEST_SUM = 3
"""With two clients, each could take its own update off the sum and see the other's."""

_TRUE_OF_A_MEAN = frozenset({"relative_change"})
"""Values of a report that do not look at single updates; the others would describe copies."""

Dropouts = Callable[[int], Collection[str]]
"""Client ids that go missing in a round, by its number."""


def nobody(_round_number: int) -> Collection[str]:
    """Everybody stays."""
    return ()


def threshold_of(settings: SecureAggregation, num_clients: int) -> int:
    """How many clients must stay: as set, else two thirds, and never fewer than three."""
    return settings.threshold or max(SMALLEST_SUM, -(-2 * num_clients // 3))


class SecurelyAggregated:
    """See the module's text.

    Args:
        inner: made from `params`.
        params: of the strategy.
        settings: of the run.
        dropouts: who goes missing when; nobody by default.
    """

    def __init__(
        self,
        inner: Strategy,
        params: Params,
        settings: SecureAggregation,
        dropouts: Dropouts = nobody,
    ) -> None:
        self.inner = inner
        self.params = params
        self.settings = settings
        self._dropouts = dropouts

    def check(self, federation: FederationSpec) -> list[Refusal]:
        """Besides what the wrapped strategy refuses: too few clients, or entries of one alone."""
        return [*self.inner.check(federation), *self._refusals(federation)]

    def init_state(self, federation: FederationSpec, seed: int) -> ServerState:
        """As the wrapped strategy does."""
        return self.inner.init_state(federation, seed)

    def configure_round(
        self, state: ServerState, federation: FederationSpec, round_number: int, *, deliver: bool
    ) -> dict[str, ClientPlan]:
        """As the wrapped strategy does."""
        return self.inner.configure_round(state, federation, round_number, deliver=deliver)

    def train_client(self, plan: ClientPlan, client: LocalClient) -> ClientUpdate:
        """As the wrapped strategy does; what it shares meets the server in `aggregate` only."""
        return self.inner.train_client(plan, client)

    def deliver_client(self, plan: ClientPlan, client: LocalClient, folder: Path) -> Metrics:
        """As the wrapped strategy does."""
        return self.inner.deliver_client(plan, client, folder)

    def aggregate(
        self, state: ServerState, federation: FederationSpec, updates: Iterable[ClientUpdate]
    ) -> tuple[ServerState, AggregationReport]:
        """The next state from the opened mean of those who stayed.

        Raises:
            ProtocolError: too few stayed, or a value is out of the agreed range.
            InvalidUpdateError: clients send different tensors, or the wrapped strategy refuses.
        """
        present = list(updates)
        self._require_alike(present)
        names = secret_names(self.params, present[0].shared)
        round_number = present[0].round_number
        mean = secure_mean(
            {
                update.client_id: Contribution(
                    torch.cat([update.shared[n].double().flatten() for n in names]).numpy(),
                    update.num_examples,
                )
                for update in present
            },
            FixedPoint(self.settings.value_range),
            threshold_of(self.settings, len(federation.clients)),
            f"{state.meta.get('seed')}\x1f{round_number}",
            self._dropouts(round_number),
        )
        opened = _shaped(torch.from_numpy(mean.values), names, present[0].shared)
        survivors = (
            replace(update, shared={**update.shared, **opened})
            for update in present
            if update.client_id in mean.survivors
        )
        next_state, report = self.inner.aggregate(state, federation, survivors)
        values = {name: v for name, v in report.values.items() if name in _TRUE_OF_A_MEAN}
        values["num_dropouts"] = float(len(present) - len(mean.survivors))
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
        held = [_held(self.params, client) for client in clients]
        return [
            Refusal(
                client.client_id,
                f"Client {client.name!r} holds other entries than {clients[0].name!r} "
                f"({_described(client)}; {_described(clients[0])}), so a sum would show what one "
                "client sent: give all clients one rank, or set `sparsity`, and the same module "
                "roles; heterotune needs equal depths as well.",
            )
            for client, entries in zip(clients, held, strict=True)
            if entries != held[0]
        ]

    def _require_alike(self, updates: Sequence[ClientUpdate]) -> None:
        if not updates:
            raise InvalidUpdateError("No client sent an update: a round needs at least one.")
        first = updates[0]
        expected = {name: tensor.shape for name, tensor in first.shared.items()}
        for update in updates[1:]:
            if {name: tensor.shape for name, tensor in update.shared.items()} != expected:
                raise InvalidUpdateError(
                    f"The updates of {first.client_id!r} and {update.client_id!r} differ in names "
                    "or shapes, so they cannot be added up behind masks: give the clients equal "
                    "ranks, or leave secure aggregation out."
                )


def _held(params: Params, client: ClientSpec) -> tuple[object, ...]:
    """What decides which entries of the shared tensors a client holds."""
    match params:
        case H2TuneParams():  # block layout with untrained masks
            size = client.lora_rank if params.sparsity is None else None
            return (size, *sorted(client.modules))
        case HeteroTuneParams():
            return (client.lora_rank, client.architecture.num_layers)
        case _:  # needs clients of equal shape anyway
            return ()


def _described(client: ClientSpec) -> str:
    return (
        f"rank {client.lora_rank}, {client.architecture.num_layers} layers, "
        f"{', '.join(sorted(client.modules))}"
    )


def _shaped(values: torch.Tensor, names: Sequence[str], like: Tensors) -> Tensors:
    parts = torch.split(values, [like[name].numel() for name in names])
    return {
        name: part.view(like[name].shape).to(like[name].dtype)
        for name, part in zip(names, parts, strict=True)
    }
