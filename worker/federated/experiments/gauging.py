"""Gauged factors for all clients of a setting, as what they bring into their first round."""

from collections.abc import Mapping, Sequence

import torch

from worker.federated.experiments.arm_kinds import GaugeSource
from worker.federated.experiments.config import Setting
from worker.federated.gauge import (
    Activations,
    agreed_codes,
    agreement,
    gauged_factors,
    record,
    reference_codes,
    scores_by_side,
)
from worker.federated.probes import probe_batches
from worker.federated.roles import adapted_modules
from worker.federated.simulation import SimulatedClient
from worker.federated.types import Tensors

MAX_PROBE_TOKENS = 256


def gauged_private(
    setting: Setting, clients: Sequence[SimulatedClient], texts: Sequence[str], source: GaugeSource
) -> dict[str, Tensors]:
    """Factors of every client in the gauge of the setting's probes.

    Args:
        setting: its unit and global rank.
        clients: clients with the same number of layers and the same model class share one model,
            so each model reads the probes once.
        texts: the public probe texts.
        source: `exchange` joins the scores of all clients; `reference` takes the last outputs of
            the first client's model, so that nothing is exchanged; `none` gives nothing.

    Returns:
        By client id, `factors/A/<module>` (rank, in) and `factors/B/<module>` (out, rank).
    """
    if source == "none":
        return {}
    seen: dict[int, dict[str, Activations]] = {}
    for client in clients:
        if id(client.model) not in seen:
            batches = probe_batches(
                client.tokenizer, texts, setting.probes.unit, max_length=MAX_PROBE_TOKENS
            )
            seen[id(client.model)] = record(client.model, batches)
    codes = _codes(setting, clients, seen, source)
    return {client.client_id: _factors(client, seen[id(client.model)], codes) for client in clients}


def _codes(
    setting: Setting,
    clients: Sequence[SimulatedClient],
    seen: Mapping[int, Mapping[str, Activations]],
    source: GaugeSource,
) -> dict[str, torch.Tensor]:
    scores: dict[str, list[torch.Tensor]] = {}
    by_model = {
        client_id: scores_by_side(client.model, seen[client_id], setting.global_rank)
        for client_id, client in {id(client.model): client for client in clients}.items()
    }
    for client in clients:
        for side, matrices in by_model[id(client.model)].items():
            scores.setdefault(side, []).extend(matrices)
    if source == "exchange":
        return {
            side: agreed_codes(agreement(matrices), setting.global_rank)
            for side, matrices in scores.items()
        }
    reference = clients[0]
    last = adapted_modules(reference.model)[-1].name
    outputs = seen[id(reference.model)][last].outputs
    return dict.fromkeys(scores, reference_codes(outputs, setting.global_rank))


def _factors(
    client: SimulatedClient, seen: Mapping[str, Activations], codes: Mapping[str, torch.Tensor]
) -> Tensors:
    tensors: Tensors = {}
    rank = client.lora_rank
    for module in adapted_modules(client.model):
        found = gauged_factors(
            seen[module.name], codes[f"{module.role}/in"], codes[f"{module.role}/out"]
        )
        # The codes come in order of importance, and so does the block that a client holds.
        tensors[f"factors/A/{module.name}"] = found.in_factor[:rank].contiguous()
        tensors[f"factors/B/{module.name}"] = found.out_factor[:, :rank].contiguous()
    return tensors
