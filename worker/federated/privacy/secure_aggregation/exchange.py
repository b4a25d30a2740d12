"""From keys to the opened mean: a whole round in one process, and the parts real rounds share."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from worker.federated.privacy.secure_aggregation.client import SecureClient
from worker.federated.privacy.secure_aggregation.fixed_point import FixedPoint
from worker.federated.privacy.secure_aggregation.server import SecureServer


@dataclass(frozen=True, slots=True)
class Contribution:
    """What one client would send in the clear."""

    values: npt.NDArray[np.float64]  # (num_values,)
    weight: float  # public, above 0, such as its number of examples


@dataclass(frozen=True, slots=True)
class SecureMean:
    """What the server learns."""

    values: npt.NDArray[np.float64]  # weighted mean over the survivors, (num_values,)
    survivors: tuple[str, ...]
    num_dropouts: int  # clients that announced keys, and whose input did not come
    error_bound: float  # largest possible deviation of a value from the exact mean


def public_shares(weights: Mapping[str, float]) -> dict[str, float]:
    """p_i = weight / sum of all weights, by client id: what inputs are multiplied by.

    Args:
        weights: of everybody on the roster, above 0.
    """
    total = sum(weights.values())
    return {name: weight / total for name, weight in weights.items()}


def secure_mean(
    contributions: Mapping[str, Contribution],
    grid: FixedPoint,
    threshold: int,
    round_tag: str,
    dropouts: Collection[str] = (),
) -> SecureMean:
    """sum_i p_i x_i / sum_i p_i over the clients whose input arrives.

    Weights are public, so p_i = weight / sum of all weights is known before anybody goes missing,
    and the rest of the division happens after the sum is opened.

    Args:
        contributions: by client id, all of one length.
        grid: equal for all.
        threshold: how many must stay.
        round_tag: of run and round.
        dropouts: who goes missing after shares were exchanged, before its masked input arrives.

    Raises:
        ProtocolError: too few stay, or a value is outside the grid's range.
    """
    shares = public_shares({name: part.weight for name, part in contributions.items()})
    clients = {name: SecureClient(name, threshold, round_tag) for name in contributions}
    num_values = max(len(contribution.values) for contribution in contributions.values())
    server = SecureServer(threshold, round_tag, num_values)
    for client in clients.values():
        server.add_keys(client.keys())
    roster = server.roster()
    for client in clients.values():
        server.add_shares(client.share(roster))
    present = [name for name in clients if name not in dropouts]
    for name in present:
        encoded = grid.encode(contributions[name].values, shares[name])
        server.add_masked(clients[name].mask(encoded, server.inbox(name)))
    survivors = server.survivors()
    for name in present:
        server.add_revealed(clients[name].reveal(survivors))
    return opened_mean(server, grid, shares)


def opened_mean(server: SecureServer, grid: FixedPoint, shares: Mapping[str, float]) -> SecureMean:
    """The weighted mean, once all four steps are done.

    Args:
        server: holds everything that clients sent.
        grid: on which they encoded their values.
        shares: as `public_shares` gives them.

    Raises:
        ProtocolError: too few clients answered, or what they told opens nothing.
    """
    survivors = server.survivors()
    kept = sum(shares[name] for name in survivors)
    return SecureMean(
        values=grid.decode(server.total()) / kept,
        survivors=tuple(survivors),
        num_dropouts=len(shares) - len(survivors),
        error_bound=len(survivors) * grid.step / 2 / kept,
    )
