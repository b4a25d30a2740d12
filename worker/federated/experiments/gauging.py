"""Gauged factors for all clients of a setting, as what they bring into their first round."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial

import torch

from backend.contracts.params.h2tune import H2TuneParams, Writing
from worker.federated.effect import effect_factors, summaries
from worker.federated.experiments.arm_kinds import Arm, FederatedArm, GaugeSource, LocalArm
from worker.federated.experiments.config import Setting
from worker.federated.gauge import (
    Activations,
    Factors,
    agreed_codes,
    agreement,
    gauged_factors,
    probe_scores,
    record,
    reference_codes,
    score_count,
    scores_by_side,
)
from worker.federated.probes import ProbeBatch, probe_batches
from worker.federated.roles import adapted_modules
from worker.federated.simulation import SimulatedClient
from worker.federated.types import Tensors

MAX_PROBE_TOKENS = 256


def gauge_of(arm: Arm) -> tuple[GaugeSource, Writing]:
    """Where an arm's factors come from, and how they write codes."""
    if isinstance(arm, FederatedArm | LocalArm) and isinstance(arm.strategy, H2TuneParams):
        return arm.gauge, arm.strategy.writing
    return "none", "covariance"


def gauged_private(
    setting: Setting,
    clients: Sequence[SimulatedClient],
    texts: Sequence[str],
    source: GaugeSource,
    writing: Writing = "covariance",
) -> dict[str, Tensors]:
    """Factors of every client in the gauge of the setting's probes.

    Args:
        setting: its unit and global rank.
        clients: clients with the same number of layers and the same model class share one model,
            so each model reads the probes once.
        texts: the public probe texts.
        source: `exchange` joins the scores of all clients; `reference` takes the last outputs of
            the first client's model, so that nothing is exchanged; `none` gives nothing.
        writing: what the factor B means.

    Returns:
        By client id, `factors/A/<module>` (rank, in) and `factors/B/<module>` (out, rank).
    """
    if source == "none":
        return {}
    if writing == "effect":
        return _by_effect(setting, clients, texts, source)
    seen: dict[int, dict[str, Activations]] = {}
    for client in clients:
        if id(client.model) not in seen:
            batches = probe_batches(
                client.tokenizer, texts, setting.probes.unit, max_length=MAX_PROBE_TOKENS
            )
            seen[id(client.model)] = record(client.model, batches)
    codes = _codes(setting, clients, seen, source)
    return {client.client_id: _factors(client, seen[id(client.model)], codes) for client in clients}


def _by_effect(
    setting: Setting, clients: Sequence[SimulatedClient], texts: Sequence[str], source: GaugeSource
) -> dict[str, Tensors]:
    models = {id(client.model): client for client in clients}

    def read(client: SimulatedClient) -> Iterator[ProbeBatch]:
        unit = setting.probes.unit
        return probe_batches(client.tokenizer, texts, unit, max_length=MAX_PROBE_TOKENS)

    said = {key: summaries(client.model, read(client)) for key, client in models.items()}
    if source == "exchange":
        count = score_count(len(said[id(clients[0].model)]), setting.global_rank)
        scores = {key: probe_scores(summary, count) for key, summary in said.items()}
        total = agreement(scores[id(client.model)] for client in clients)
        codes = agreed_codes(total, setting.global_rank)
    else:
        codes = reference_codes(said[id(clients[0].model)], setting.global_rank)
    found = {
        key: effect_factors(client.model, partial(read, client), codes)
        for key, client in models.items()
    }
    return {client.client_id: _held(client, found[id(client.model)]) for client in clients}


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
    found = {
        module.name: gauged_factors(
            seen[module.name], codes[f"{module.role}/in"], codes[f"{module.role}/out"]
        )
        for module in adapted_modules(client.model)
    }
    return _held(client, found)


def _held(client: SimulatedClient, found: Mapping[str, Factors]) -> Tensors:
    """The codes come in order of importance, and so does the block that a client holds."""
    tensors: Tensors = {}
    rank = client.lora_rank
    for name, factors in found.items():
        tensors[f"factors/A/{name}"] = factors.in_factor[:rank].contiguous()
        tensors[f"factors/B/{name}"] = factors.out_factor[:, :rank].contiguous()
    return tensors
