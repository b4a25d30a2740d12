"""How far different models agree on what to change in T: what a gauge is worth before any training.

    python benchmarks/gauge_agreement.py --data-dir DATA --models-dir MODELS [--seeds 0,1,2]
        [--config examples/sharing/two_families.toml] [--num-train 512]

Every client of the file's first setting computes the gradient of its training loss with respect to
T = 0, all in one gauge, and maps it to the common slots. Each line is one JSON object: the mean
cosine over pairs of clients, with codes written by their effect as `value`, by covariance as
`peer_value`; pairs of one base model, of models that differ, and of families that differ apart.
Two clients never have a training row in common. Few rows give noisy gradients, which agree little.
"""

import argparse
import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import get_args

import torch

from backend.contracts.params.h2tune import Writing
from worker.federated.alignment import map_up, start_alignment
from worker.federated.experiments.config import Experiment, load_experiment
from worker.federated.experiments.gauging import gauged_private
from worker.federated.experiments.members import make_clients, probe_texts
from worker.federated.gauge import Factors
from worker.federated.roles import adapted_modules
from worker.federated.seeds import generator
from worker.federated.simulation import SimulatedClient
from worker.federated.strategies.h2tune_codes import middle_gradients
from worker.federated.types import LocalClient, Tensors

Cosines = dict[str, list[float]]
"""By kind of pair."""


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--models-dir", type=Path)
    parser.add_argument("--config", type=Path, default=Path("examples/sharing/two_families.toml"))
    parser.add_argument("--seeds", type=lambda text: list(map(int, text.split(","))), default=[0])
    parser.add_argument("--num-train", type=int, default=512, help="rows behind each gradient")
    options = parser.parse_args()
    torch.set_num_threads(1)
    experiment = load_experiment(options.config)
    setting = experiment.settings[0].model_copy(update={"num_train": options.num_train})
    texts = probe_texts(setting, options.data_dir)
    found: dict[Writing, Cosines] = {writing: {} for writing in get_args(Writing)}
    gauges: dict[Writing, Mapping[str, Tensors]] = {}
    for seed in options.seeds:
        pairs = make_clients(setting, seed, options.data_dir, options.models_dir)
        clients = [client for _, client in pairs]
        for writing, cosines in found.items():
            if writing not in gauges:  # made from models and public texts: the same for all seeds
                gauges[writing] = gauged_private(setting, clients, texts, "exchange", writing)
            for kind, cosine in measure(experiment, clients, gauges[writing], seed):
                cosines.setdefault(kind, []).append(cosine)
    for kind, values in found["effect"].items():
        value, peer = statistics.fmean(values), statistics.fmean(found["covariance"][kind])
        line = {
            "bench": f"gauge_agreement_{kind}",
            "value": round(value, 3),
            "unit": "cosine",
            "peer": "covariance",
            "peer_value": round(peer, 3),
            "ratio": round(value / peer, 2) if peer else None,
            "pairs": len(values),
            "least": round(min(values), 3),
        }
        print(json.dumps(line), flush=True)


def measure(
    experiment: Experiment,
    clients: Sequence[SimulatedClient],
    gauge: Mapping[str, Tensors],
    seed: int,
) -> Iterator[tuple[str, float]]:
    """Kind and cosine of every pair of clients, over the roles that both have."""
    num_slots = max(client.spec().architecture.num_layers for client in clients)
    slots = [
        in_slots(
            client, local_gradients(experiment, client, gauge[client.client_id], seed), num_slots
        )
        for client in clients
    ]
    for (one, left), (two, right) in combinations(zip(clients, slots, strict=True), 2):
        roles = sorted(left.keys() & right.keys())
        vectors = [torch.cat([known[role].flatten() for role in roles]) for known in (left, right)]
        yield kind_of(one, two), float(torch.cosine_similarity(*vectors, dim=0))


def local_gradients(
    experiment: Experiment, client: SimulatedClient, private: Tensors, seed: int
) -> Tensors:
    """By module name, (R, R)."""
    factors = {
        module.name: Factors(
            private[f"factors/A/{module.name}"], private[f"factors/B/{module.name}"]
        )
        for module in adapted_modules(client.model)
    }
    local = LocalClient(
        spec=client.spec(),
        model=client.model,
        objective=client.objective(experiment.training),
        data=client.data,
        training=experiment.training,
        private=None,
    )
    return middle_gradients(local, factors, seed)


def in_slots(client: SimulatedClient, gradients: Tensors, num_slots: int) -> Tensors:
    """By role, (L*, R, R), through the alignment that every client starts with."""
    by_role: dict[str, list[torch.Tensor]] = {}
    for module in adapted_modules(client.model):
        by_role.setdefault(module.role, []).append(gradients[module.name])
    num_layers = client.spec().architecture.num_layers
    alignment = start_alignment(
        "interpolation", "orthonormal", num_slots, num_layers, generator(0, "unused")
    )
    return {
        role: map_up(alignment, torch.stack(layers), "orthonormal")
        for role, layers in by_role.items()
    }


def kind_of(one: SimulatedClient, two: SimulatedClient) -> str:
    """What the two clients' base models have in common."""
    if one.model is two.model:
        return "same_model"
    families = {client.spec().architecture.family for client in (one, two)}
    return "other_model" if len(families) == 1 else "other_family"


if __name__ == "__main__":
    main()
