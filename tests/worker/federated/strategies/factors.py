"""Random factors as clients send them, and their dense sums by NumPy alone."""

from collections.abc import Sequence

import numpy as np
import torch

from worker.federated.types import ClientSpec, ClientUpdate, FederationSpec, Tensors

Dense = dict[str, np.ndarray]
"""By role: (layers, out_features, in_features), fp64."""


def random_factors(client: ClientSpec, rank: int | None = None, *, seed: int = 0) -> Tensors:
    """Stacked A and B of a client's model, standard normal."""
    source = np.random.default_rng([seed, *client.client_id.encode()])
    layers, rank = client.architecture.num_layers, rank or client.lora_rank
    tensors: Tensors = {}
    for role, module in client.modules.items():
        a = source.normal(size=(layers, rank, module.in_features))
        b = source.normal(size=(layers, module.out_features, rank))
        tensors[f"A/{role}"] = torch.from_numpy(a).float()
        tensors[f"B/{role}"] = torch.from_numpy(b).float()
    return tensors


def update_of(client: ClientSpec, shared: Tensors, *, num_examples: int | None = None):
    """An update of round 1."""
    return ClientUpdate(
        client_id=client.client_id,
        round_number=1,
        num_examples=num_examples or client.num_examples,
        shared=shared,
        private={},
        metrics={},
    )


def random_updates(federation: FederationSpec, *, seed: int = 0) -> list[ClientUpdate]:
    """One update a client, with random factors of its own rank."""
    return [update_of(c, random_factors(c, seed=seed)) for c in federation.clients]


def dense(stacked: Tensors) -> Dense:
    """B A of every layer."""
    roles = [name[2:] for name in stacked if name.startswith("A/")]
    return {
        role: stacked[f"B/{role}"].double().numpy() @ stacked[f"A/{role}"].double().numpy()
        for role in roles
    }


def dense_mean(updates: Sequence[ClientUpdate]) -> Dense:
    """sum_i p_i B_i A_i with p_i by numbers of examples."""
    total = sum(update.num_examples for update in updates)
    products = [dense(update.shared) for update in updates]
    return {
        role: sum(
            update.num_examples / total * product[role]
            for update, product in zip(updates, products, strict=True)
        )
        for role in products[0]
    }


def best_of_rank(matrices: Dense, rank: int) -> Dense:
    """NumPy's SVD of the dense matrices, cut off."""
    cut = {}
    for role, stack in matrices.items():
        u, s, vt = np.linalg.svd(stack, full_matrices=False)
        cut[role] = (u[:, :, :rank] * s[:, None, :rank]) @ vt[:, :rank]
    return cut


def distance(found: Dense, expected: Dense) -> float:
    """Relative to the expected, over all roles."""
    assert found.keys() == expected.keys()
    gap = sum(np.sum((found[role] - expected[role]) ** 2) for role in expected)
    size = sum(np.sum(expected[role] ** 2) for role in expected)
    return float(np.sqrt(gap / size))
