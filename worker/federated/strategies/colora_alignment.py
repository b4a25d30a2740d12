"""The frozen factors of Co-LoRA's shared branches: made once by each client, alike in meaning."""

from collections.abc import Sequence

import torch
from torch import nn

from backend.contracts.params.colora import CoLoraParams
from worker.federated.client_round import take
from worker.federated.errors import InvalidConfigError
from worker.federated.gauge import Factors, gauged_factors, record
from worker.federated.roles import AdaptedModule
from worker.federated.seeds import generator
from worker.federated.strategies.lora_client import store_of
from worker.federated.strategies.probe_texts import client_probes
from worker.federated.types import ClientPlan, LocalClient
from worker.federated.wire import TensorSpec, require_tensors


def aligned_factors(
    params: CoLoraParams, plan: ClientPlan, client: LocalClient, modules: Sequence[AdaptedModule]
) -> dict[str, Factors]:
    """A (R, in) and B (out, R) by module name: from the store, or made as `params.gauge` says.

    Args:
        params: of the strategy.
        plan: of this round; carries the codes until the client has sent something.
        client: with its base model as it came, without an adapter.
        modules: those that get a shared branch.

    Raises:
        InvalidConfigError: the gauge is `probe`, but the model reads no text or there are no codes.
        InvalidUpdateError: the store belongs to another model or another global rank.
    """
    known = take("aligned", client.private)
    if known:
        expected = {f"in/{m.name}": TensorSpec((plan.global_rank, m.in_features)) for m in modules}
        for module in modules:
            expected[f"out/{module.name}"] = TensorSpec((module.out_features, plan.global_rank))
        require_tensors(known, expected, store_of(plan))
        return {m.name: Factors(known[f"in/{m.name}"], known[f"out/{m.name}"]) for m in modules}
    if params.gauge == "orthonormal":
        return {module.name: _orthonormal(plan, module) for module in modules}
    return _probed(plan, client, modules)


def _probed(
    plan: ClientPlan, client: LocalClient, modules: Sequence[AdaptedModule]
) -> dict[str, Factors]:
    """Factors that read and write the common codes of the public prompts."""
    if "codes" not in plan.tensors:
        raise InvalidConfigError(
            f"gauge is 'probe', but client {plan.client_id!r} lost its store after the codes were "
            "sent: start a new run."
        )
    codes, seen = plan.tensors["codes"], record(client.model, client_probes(plan, client))
    return {module.name: gauged_factors(seen[module.name], codes, codes) for module in modules}


def _orthonormal(plan: ClientPlan, module: AdaptedModule) -> Factors:
    """Random orthonormal factors from the client's own seed: nothing is aligned (ablation)."""
    source = generator(plan.seed, plan.client_id, "aligned", module.name)
    in_factor = torch.empty(plan.global_rank, module.in_features)
    out_factor = torch.empty(module.out_features, plan.global_rank)
    nn.init.orthogonal_(in_factor, generator=source)
    nn.init.orthogonal_(out_factor, generator=source)
    return Factors(in_factor, out_factor)
