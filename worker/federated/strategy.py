"""The interface of every federated fine-tuning method; `strategies.registry` lists them.

A strategy is a frozen object made from its `Params`. It keeps no memory of its own: whatever must
survive from round to round lives in `ServerState` (server) or `ClientUpdate.private` (client),
because two parts of one round may run on different machines.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

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


class Strategy(Protocol):
    """What the round life of the platform and `simulation` call, in this order."""

    def check(self, federation: FederationSpec) -> list[Refusal]:
        """Clients that this strategy cannot serve, each with the reason; empty: all are fine."""

    def init_state(self, federation: FederationSpec, seed: int) -> ServerState:
        """State before round 1; the same seed gives the same state, byte for byte."""

    def configure_round(
        self, state: ServerState, federation: FederationSpec, round_number: int, *, deliver: bool
    ) -> dict[str, ClientPlan]:
        """One plan per client id. `deliver`: the last round, which trains nothing."""

    def train_client(self, plan: ClientPlan, client: LocalClient) -> ClientUpdate:
        """Loads the plan, evaluates, trains, evaluates, and gives what is shared and kept.

        Raises:
            NonFiniteError: training diverged (names the tensor and the remedy).
        """

    def deliver_client(self, plan: ClientPlan, client: LocalClient, folder: Path) -> Metrics:
        """Loads the final state, evaluates, and writes the adapter as a stock PEFT LoRA folder."""

    def aggregate(
        self, state: ServerState, federation: FederationSpec, updates: Iterable[ClientUpdate]
    ) -> tuple[ServerState, AggregationReport]:
        """The next state. `updates` is read once, in order of client id: memory stays constant.

        Raises:
            InvalidUpdateError: a tensor is missing, unknown, misshaped or not finite.
        """
