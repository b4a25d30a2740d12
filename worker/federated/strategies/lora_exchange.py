"""What strategies with plain LoRA send, and how the server reads and averages it.

Stacked factors by role: `A/<role>` (layers, rank, in_features), `B/<role>` (layers, out_features,
rank), fp32; B has the sender's scale lora_alpha / lora_rank in it (see `lora_client`).
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Literal

import torch

from backend.contracts.enums import RoundKind
from worker.federated.client_round import relative_change
from worker.federated.errors import InvalidUpdateError
from worker.federated.low_rank import LowRank, compact, joined, products_of
from worker.federated.seeds import generator
from worker.federated.types import (
    AggregationReport,
    ClientPlan,
    ClientSpec,
    ClientUpdate,
    FederationSpec,
    ServerState,
    Tensors,
)
from worker.federated.wire import TensorSpec, require_tensors

Letters = Literal["AB", "A", "B"]
"""Which of the two factors."""

Expected = Callable[[ClientSpec, ClientUpdate], Mapping[str, TensorSpec]]
"""What a client's update must hold."""


def factor_specs(client: ClientSpec, rank: int, letters: Letters = "AB") -> dict[str, TensorSpec]:
    """What stacked factors of this rank look like for a client's model."""
    num_layers = client.architecture.num_layers
    specs = {}
    for letter in letters:
        for role, module in client.modules.items():
            sizes = (rank, module.in_features) if letter == "A" else (module.out_features, rank)
            specs[f"{letter}/{role}"] = TensorSpec((num_layers, *sizes))
    return specs


def expected_factors(client: ClientSpec, update: ClientUpdate) -> dict[str, TensorSpec]:
    """`Expected` of strategies whose clients send A and B of their own rank."""
    return factor_specs(client, client.lora_rank)


def start_factors(client: ClientSpec, rank: int, seed: int, letters: Letters = "AB") -> Tensors:
    """Factors that begin a run for everybody: A as LoRA draws it, B zero; a pure function."""
    tensors: Tensors = {}
    for name, spec in factor_specs(client, rank, letters).items():
        tensors[name] = torch.zeros(spec.shape)
        if name.startswith("A/"):
            bound = 1 / math.sqrt(spec.shape[2])
            tensors[name].uniform_(-bound, bound, generator=generator(seed, "start", name))
    return tensors


def make_plans(
    state: ServerState,
    federation: FederationSpec,
    round_number: int,
    *,
    deliver: bool,
    tensors: Callable[[ClientSpec], Tensors] = lambda client: {},
    settings: Mapping[str, Any] | None = None,
) -> dict[str, ClientPlan]:
    """One plan per client id; the state must hold the run's `seed`.

    Args:
        state: of the server.
        federation: who gets a plan.
        round_number: from 1.
        deliver: the last round, which trains nothing.
        tensors: what a client receives; default nothing.
        settings: JSON values for all clients.
    """
    return {
        client.client_id: ClientPlan(
            client_id=client.client_id,
            round_number=round_number,
            kind=RoundKind.DELIVER if deliver else RoundKind.TRAIN,
            seed=state.meta["seed"],
            global_rank=federation.global_rank,
            num_slots=federation.num_slots,
            tensors=tensors(client),
            settings=settings or {},
        )
        for client in federation.clients
    }


def accepted(
    updates: Iterable[ClientUpdate], federation: FederationSpec, expected: Expected
) -> Iterator[tuple[ClientSpec, ClientUpdate]]:
    """Updates one at a time, each checked before it is given.

    Raises:
        InvalidUpdateError: a client is unknown or comes twice, states no examples, or sends
            tensors that do not fit; or nobody sent anything.
    """
    clients = {client.client_id: client for client in federation.clients}
    seen: set[str] = set()
    for update in updates:
        origin = f"the update of client {update.client_id!r}"
        client = clients.get(update.client_id)
        if client is None:
            raise InvalidUpdateError(f"{origin} comes from outside the federation: refuse it.")
        if update.client_id in seen:
            raise InvalidUpdateError(f"{origin} came twice in one round: keep only one.")
        if update.num_examples < 1:
            raise InvalidUpdateError(f"{origin} states {update.num_examples} examples: need 1.")
        require_tensors(update.shared, expected(client, update), origin)
        seen.add(update.client_id)
        yield client, update
    if not seen:
        raise InvalidUpdateError("No client sent an update: a round needs at least one.")


class WeightedMean:
    """sum_i w_i X_i / sum_i w_i by name, in fp64 so that the order of clients is irrelevant."""

    def __init__(self) -> None:
        self.num_clients = 0
        self._weight = 0.0
        self._sums: Tensors = {}

    def add(self, weight: float, tensors: Mapping[str, torch.Tensor]) -> None:
        """Adds one client, with the same names and shapes as every other."""
        for name, tensor in tensors.items():
            weighted = tensor.double() * weight
            self._sums[name] = self._sums[name] + weighted if name in self._sums else weighted
        self._weight += weight
        self.num_clients += 1

    def result(self) -> Tensors:
        """The mean, fp32; empty if nobody was added."""
        return {name: (total / self._weight).float() for name, total in self._sums.items()}


def averaged_letter(
    state: ServerState,
    federation: FederationSpec,
    updates: Iterable[ClientUpdate],
    letter: Literal["A", "B"],
) -> tuple[ServerState, AggregationReport]:
    """The next state of strategies that share one factor only: X <- sum_i p_i X_i.

    Args:
        state: with the common factor of the last round.
        federation: whose clients have equal shapes.
        updates: with one factor each.
        letter: which one.

    Raises:
        InvalidUpdateError: see `accepted`.
    """
    mean = WeightedMean()
    for _, update in accepted(
        updates, federation, lambda client, _: factor_specs(client, client.lora_rank, letter)
    ):
        mean.add(update.num_examples, update.shared)
    factors = mean.result()
    values = {"relative_change": relative_change(state.tensors, factors)}
    return ServerState(factors, state.meta), AggregationReport(mean.num_clients, values)


class ProductSum:
    """sum_i w_i B_i A_i / sum_i w_i by role: factors side by side, the weight on A.

    Ranks may differ between clients. Memory grows with the sum of ranks until that exceeds what
    the shape can need; from there on the factors are recomputed without loss.
    """

    def __init__(self) -> None:
        self._weight = 0.0
        self._sums: dict[str, LowRank] = {}

    def add(self, weight: float, tensors: Mapping[str, torch.Tensor]) -> None:
        """Adds one client's stacked factors."""
        for role, product in products_of(tensors).items():
            parts = [self._sums[role]] if role in self._sums else []
            self._sums[role] = compact(joined([*parts, product.times(weight)]))
        self._weight += weight

    def result(self) -> dict[str, LowRank]:
        """The mean product by role, fp32."""
        return {role: total.times(1 / self._weight) for role, total in self._sums.items()}
