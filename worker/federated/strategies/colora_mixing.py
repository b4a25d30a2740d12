"""Who takes how much from whom: personal mixtures of other clients' shared modules.

For client i, over the others j that have sent something (i itself is excluded):

    w_ij = softmax_j(cos(g_i, g_j) / tau)
    received_i[k] = sum_j w_ij X_j[k] / sum_{j has role k} w_ij      for every role k of client i

g are the clients' gradient sketches; the cosine is over the roles that both have. The larger tau,
the more alike the weights; tau -> infinity gives the plain mean of the others.
"""

from collections.abc import Mapping
from math import exp

import torch

from worker.federated.client_round import take
from worker.federated.types import Tensors


def mixing_weights(
    sketches: Mapping[str, Tensors], receiver: str, temperature: float
) -> dict[str, float]:
    """Weights of all sources but the receiver itself; they sum to 1, none without a source.

    Args:
        sketches: by client id, one gradient per role (R, R); of all that have sent any.
        receiver: who gets the mixture; without a sketch of its own all sources weigh alike.
        temperature: tau, above 0.
    """
    own = sketches.get(receiver, {})
    sources = sorted(sketches.keys() - {receiver})
    scores = {source: cosine(own, sketches[source]) / temperature for source in sources}
    highest = max(scores.values(), default=0.0)
    masses = {source: exp(score - highest) for source, score in scores.items()}
    total = sum(masses.values())
    return {source: mass / total for source, mass in masses.items()}


def cosine(one: Tensors, two: Tensors) -> float:
    """Cosine over the names that both have, in [-1, 1]; 0 without any, or where one is zero."""
    inner, sizes = 0.0, [0.0, 0.0]
    for name in sorted(one.keys() & two.keys()):
        left, right = one[name].double(), two[name].double()
        inner += float((left * right).sum())
        sizes = [sizes[0] + float(left.pow(2).sum()), sizes[1] + float(right.pow(2).sum())]
    size = (sizes[0] * sizes[1]) ** 0.5
    return inner / size if size > 0 else 0.0


def mixture(modules: Mapping[str, Tensors], weights: Mapping[str, float]) -> Tensors:
    """The weighted mean of what the sources have, name by name over those who have it, fp32.

    Args:
        modules: by client id, tensors by name; shapes agree where names do.
        weights: by client id, as `mixing_weights` gives them.
    """
    sums: dict[str, torch.Tensor] = {}
    masses: dict[str, float] = {}
    for source, weight in sorted(weights.items()):
        for name, tensor in modules[source].items():
            weighted = weight * tensor.double()
            sums[name] = sums[name] + weighted if name in sums else weighted
            masses[name] = masses.get(name, 0.0) + weight
    return {name: (total / masses[name]).float() for name, total in sums.items()}


def by_client(prefix: str, tensors: Tensors) -> dict[str, Tensors]:
    """What lies below `<prefix>/<client id>/`, by client id."""
    found = take(prefix, tensors)
    clients = sorted({name.partition("/")[0] for name in found})
    return {client: take(client, found) for client in clients}
