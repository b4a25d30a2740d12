"""The probe gauge inside H2Tune: common codes first, then factors on every client by itself.

Codes come from one of two sources. `reference`: the server reads the probe texts with one built-in
model, whose principal components are the codes; nothing goes up. `exchange`: the clients' models
agree on them in a round of their own (`h2tune_exchange`). A client that has no factors yet gets the
codes, reads the same texts with its own model, and fits A and B (`worker.federated.gauge`), so that
who joins late gets the same gauge.

B writes codes by covariance or by effect (`worker.federated.effect`); the second needs one set of
codes for all linears, whatever its source.

Bytes of codes, once: 4 n R; with `exchange`, written by covariance, as much for each role and side.
Probe texts that the federation brought along come with them.
"""

from collections.abc import Mapping
from functools import lru_cache, partial

import torch

from backend.contracts.base_models import BaseModelRef
from backend.contracts.codes import REFERENCE_MODEL
from backend.contracts.params.h2tune import H2TuneParams
from worker.federated.adapters.geometry import make_geometry
from worker.federated.base_models import load_base_model
from worker.federated.effect import effect_factors
from worker.federated.errors import InvalidConfigError
from worker.federated.gauge import Factors, gauged_factors, record, reference_codes
from worker.federated.probes import probe_batches
from worker.federated.roles import AdaptedModule, adapted_modules
from worker.federated.strategies.h2tune_codes import code_energies
from worker.federated.strategies.probe_texts import (
    MAX_PROBE_TOKENS,
    client_probes,
    federation_texts,
)
from worker.federated.types import ClientPlan, FederationSpec, LocalClient, Tensors

REFERENCE = BaseModelRef(source="builtin", id=REFERENCE_MODEL)


def federation_codes(federation: FederationSpec) -> torch.Tensor:
    """The reference model's codes of a federation's probe texts, (n, R) fp32.

    Raises:
        InvalidConfigError: the global rank exceeds the width of the reference model, or a probe
            text is too long for it.
    """
    return _codes(tuple(federation_texts(federation)), federation.global_rank).clone()


@lru_cache(maxsize=8)  # federations bring texts of their own: not one for each for ever
def _codes(texts: tuple[str, ...], global_rank: int) -> torch.Tensor:
    """The same for every federation with these texts, and some seconds of work."""
    model, tokenizer = load_base_model(REFERENCE, device=torch.device("cpu"), dtype=torch.float32)
    pooled = []
    with torch.no_grad():
        for batch in probe_batches(tokenizer, texts, "text", max_length=MAX_PROBE_TOKENS):
            hidden = model.base_model(**batch.inputs).last_hidden_state
            pooled.append(batch.pooling @ hidden.flatten(0, 1))
    return reference_codes(torch.cat(pooled), global_rank)


def client_factors(plan: ClientPlan, client: LocalClient, params: H2TuneParams) -> Tensors:
    """What a client starts with: its factors in the common gauge, and which codes it holds.

    Args:
        plan: carries the codes, and the texts or kinds of tasks they belong to.
        client: with its base model as it came, without an adapter.
        params: layout, sparsity, and how codes are written and selected.

    Returns:
        `factors/A/<module>` (factor rank, in), `factors/B/<module>` (out, factor rank) and, in
        the `block` layout, `scores/<role>` (R,), highest for the codes that it holds.

    Raises:
        InvalidConfigError: its model reads no text, or the plan has no codes for a role.
    """
    modules = adapted_modules(client.model)
    if params.writing == "effect":
        read = partial(client_probes, plan, client)
        found = effect_factors(client.model, read, plan.tensors["codes"])
    else:
        seen = record(client.model, client_probes(plan, client))
        found = {
            module.name: gauged_factors(
                seen[module.name], _side(plan, module, "in"), _side(plan, module, "out")
            )
            for module in modules
        }
    geometry = make_geometry(
        params.layout, client.spec.lora_rank, plan.global_rank, params.sparsity
    )
    held = torch.arange(geometry.factor_rank)
    tensors: Tensors = {}
    if geometry.layout == "block":
        scores = _code_scores(plan, client, params, found)
        order = scores.argsort(descending=True, stable=True)
        # The codes in use first, in ascending order as in the middle matrix, then spare ones.
        spare = order[geometry.num_selected : geometry.factor_rank]
        held = torch.cat([geometry.select(scores), spare])
        tensors.update({f"scores/{module.role}": scores.clone() for module in modules})
    for module in modules:
        factors = found[module.name]
        tensors[f"factors/A/{module.name}"] = factors.in_factor[held].contiguous()
        tensors[f"factors/B/{module.name}"] = factors.out_factor[:, held].contiguous()
    return tensors


def _side(plan: ClientPlan, module: AdaptedModule, side: str) -> torch.Tensor:
    """The codes of one side of a module: those of its role, or one set for all."""
    for name in (f"codes/{module.role}/{side}", "codes"):
        if name in plan.tensors:
            return plan.tensors[name]
    raise InvalidConfigError(
        f"gauge is 'probe', but there are no codes for modules of role {module.role!r}, which "
        f"client {plan.client_id!r} has: nobody who has such modules took part when codes were "
        "agreed on. Set codes to 'reference', or start a run in which this client takes part from "
        "the start."
    )


def _code_scores(
    plan: ClientPlan,
    client: LocalClient,
    params: H2TuneParams,
    factors: Mapping[str, Factors],
) -> torch.Tensor:
    """Scores of the codes, (R,), falling evenly from 1 to -1 in order of their importance."""
    falling = torch.linspace(1.0, -1.0, plan.global_rank)
    if params.code_selection == "leading" or client.spec.lora_rank == plan.global_rank:
        return falling  # codes come in order of their variance
    order = code_energies(plan, client, factors).argsort(descending=True, stable=True)
    return torch.empty_like(falling).index_copy(0, order, falling)
