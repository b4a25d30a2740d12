"""What a federation's clients have in common, before anything runs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from backend.contracts.clients import Client
from backend.contracts.compatibility import cautions, groups, participant_of, refusals
from backend.contracts.enums import Execution
from backend.contracts.strategies import PARAMS, Params, is_grouped


@dataclass(frozen=True, slots=True)
class Fit:
    """How one client fits a federation."""

    client: Client
    rank_share: float  # r / R
    expected_sparsity: float  # share of zeros in its R x R matrices, in [0, 1]
    layer_slots: list[float]  # slot of each of its layers, from 1
    concern: str | None  # why it cannot take part as it is, with the remedy


def num_slots(clients: Sequence[Client]) -> int:
    """Depth of the common stack: the largest number of layers; 0 without clients."""
    return max((client.architecture.num_layers for client in clients), default=0)


def fits(clients: Sequence[Client], global_rank: int, sparsity: float | None) -> list[Fit]:
    """How every client fits.

    Args:
        clients: the members.
        global_rank: R.
        sparsity: the strategy's sparsity for all clients; None: 1 - (r/R)^2 from each rank.
    """
    slots = num_slots(clients)
    return [
        Fit(
            client=client,
            rank_share=client.lora_rank / global_rank,
            expected_sparsity=(
                max(0.0, 1 - (client.lora_rank / global_rank) ** 2)
                if sparsity is None
                else sparsity
            ),
            layer_slots=layer_slots(client.architecture.num_layers, slots),
            concern=_concern(client, global_rank),
        )
        for client in clients
    ]


def layer_slots(num_layers: int, slots: int) -> list[float]:
    """Layers of equal relative depth match: layer j of L stands at 1 + (j-1)(slots-1)/(L-1)."""
    if num_layers == 1:
        return [1.0]
    return [1 + j * (slots - 1) / (num_layers - 1) for j in range(num_layers)]


def smallest_global_rank(clients: Sequence[Client]) -> int:
    """The smallest global rank that these clients allow."""
    return max((client.lora_rank for client in clients), default=1)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What stands against a strategy for these clients, as whole sentences."""

    refusals: list[str]  # each one forbids the start
    cautions: list[str]  # worth knowing, no obstacle


def verdict(strategy: Mapping[str, Any], clients: Sequence[Client]) -> Verdict:
    """What the API would say to a run of this strategy, before anybody asks it.

    Args:
        strategy: values of the form, not yet validated; what is invalid is judged by the API.
        clients: the members.
    """
    try:
        params = PARAMS.validate_python(strategy)
    except ValidationError:
        return Verdict([], [])
    members = [participant_of(client) for client in clients]
    return Verdict(
        [refusal.reason for refusal in refusals(params, members)], cautions(params, members)
    )


def group_texts(strategy: Params, clients: Sequence[Client]) -> list[str]:
    """Who shares with whom, such as `north and south` and `east alone`; empty without groups."""
    if not is_grouped(strategy):
        return []
    parts = []
    for members in groups(strategy, [participant_of(client) for client in clients]):
        *others, last = [member.name for member in members]
        parts.append(f"{', '.join(others)} and {last}" if others else f"{last} alone")
    return parts


def _concern(client: Client, global_rank: int) -> str | None:
    if client.dataset is None and client.execution is Execution.MANAGED:
        return f"{client.name} has no data set yet: upload one on the Clients page."
    if client.lora_rank > global_rank:
        return (
            f"{client.name} has LoRA rank {client.lora_rank}, more than the global rank "
            f"{global_rank}: raise the global rank to at least {client.lora_rank}."
        )
    return None
