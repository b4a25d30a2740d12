"""What strategies that stand around another one have in common."""

from collections.abc import Iterable
from pathlib import Path

from backend.contracts.strategies import Params
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
)

_TRUE_OF_A_MEAN = frozenset({"agreement_explained", "relative_change"})


class Wrapped:
    """A strategy that does in all what the one inside it does; subclasses change some of it.

    Args:
        inner: made from `params`.
        params: of the strategy.
    """

    def __init__(self, inner: Strategy, params: Params) -> None:
        self.inner = inner
        self.params = params

    def check(self, federation: FederationSpec) -> list[Refusal]:
        """As the wrapped strategy does."""
        return self.inner.check(federation)

    def init_state(self, federation: FederationSpec, seed: int) -> ServerState:
        """As the wrapped strategy does."""
        return self.inner.init_state(federation, seed)

    def configure_round(
        self, state: ServerState, federation: FederationSpec, round_number: int, *, deliver: bool
    ) -> dict[str, ClientPlan]:
        """As the wrapped strategy does."""
        return self.inner.configure_round(state, federation, round_number, deliver=deliver)

    def train_client(self, plan: ClientPlan, client: LocalClient) -> ClientUpdate:
        """As the wrapped strategy does."""
        return self.inner.train_client(plan, client)

    def deliver_client(self, plan: ClientPlan, client: LocalClient, folder: Path) -> Metrics:
        """As the wrapped strategy does."""
        return self.inner.deliver_client(plan, client, folder)

    def aggregate(
        self, state: ServerState, federation: FederationSpec, updates: Iterable[ClientUpdate]
    ) -> tuple[ServerState, AggregationReport]:
        """As the wrapped strategy does, and refuses what it refuses (`InvalidUpdateError`)."""
        return self.inner.aggregate(state, federation, updates)


def true_of_a_mean(report: AggregationReport) -> dict[str, float]:
    """The values of a report that do not look at single updates.

    Where every update was replaced by the same stand-in, the others would describe copies.
    """
    return {name: value for name, value in report.values.items() if name in _TRUE_OF_A_MEAN}
