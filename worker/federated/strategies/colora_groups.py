"""Whole LoRAs among clients of equal models, on Co-LoRA's server.

Within a group of clients whose models and LoRA ranks are equal, factors fit as they are, so client
i also receives what the LoRAs of the *other* members do together:

    dW_i = sum_{j in group, j != i} w_ij s_j B_j A_j,   w_ij = softmax_j(cos(g_i, g_j) / tau)

with the softmax over the group alone. The sum is exact: factors side by side, the weight on A and
s_j in B, of rank n r for n sources and no more than the shape can need. Averaging A and B apart
would be smaller, but it gives sum_ij w_i w_j B_i A_j, which nobody has trained: private factors
start in different places and never meet.
"""

from collections.abc import Mapping

from worker.federated.low_rank import compact, factors_of, joined, products_of
from worker.federated.types import ClientSpec, FederationSpec, Tensors


def group_members(federation: FederationSpec) -> dict[str, frozenset[str]]:
    """By client id, all clients of the same model and LoRA rank, itself among them.

    Models count as the same where family, depth, hidden size and the shapes of all adapted modules
    are: that is what a server knows of them.
    """
    members: dict[tuple[object, ...], set[str]] = {}
    for client in federation.clients:
        members.setdefault(_model_of(client), set()).add(client.client_id)
    return {client: frozenset(group) for group in members.values() for client in group}


def lora_mixture(loras: Mapping[str, Tensors], weights: Mapping[str, float]) -> Tensors:
    """The weighted sum of the sources' updates B A, as stacked factors of one LoRA, fp32.

    Args:
        loras: by client id, factors of equal models as `LoraModel.stacked` gives them.
        weights: by client id; empty without a source, and so is the mixture then.

    Returns:
        `A/<role>` (layers, k, in_features) and `B/<role>` (layers, out_features, k) with k the sum
        of the sources' ranks, or min(in_features, out_features) where that is less.
    """
    if not weights:
        return {}
    parts = [
        {role: product.times(weight) for role, product in products_of(loras[source]).items()}
        for source, weight in sorted(weights.items())
    ]
    return factors_of({role: compact(joined([part[role] for part in parts])) for role in parts[0]})


def _model_of(client: ClientSpec) -> tuple[object, ...]:
    return client.architecture, tuple(sorted(client.modules.items(), key=_role)), client.lora_rank


def _role(item: tuple[str, object]) -> str:
    return item[0]
