"""Which part of an update follows from a client's data, and what its change is measured against."""

from collections.abc import Mapping

import torch

from backend.contracts.params.h2tune import H2TuneParams
from backend.contracts.params.heterotune import HeteroTuneParams
from backend.contracts.strategies import Params
from worker.federated.errors import InvalidConfigError
from worker.federated.types import ClientPlan, Tensors

_PUBLIC_PREFIXES = ("mask/", "coverage/")
"""Of H2Tune: functions of rank, depth and seed, as long as neither masks nor alignments train.

`backend.contracts.privacy.privacy_refusals` sees to that.
"""


def secret_names(params: Params, shared: Mapping[str, torch.Tensor]) -> list[str]:
    """Names of the tensors that depend on the client's data, in one order for all clients."""
    if isinstance(params, H2TuneParams):
        return sorted(name for name in shared if not name.startswith(_PUBLIC_PREFIXES))
    return sorted(shared)


def references(params: Params, plan: ClientPlan, shared: Mapping[str, torch.Tensor]) -> Tensors:
    """What the client received in place of each secret tensor that it sends.

    H2Tune (`delta`) and HeteroTune send changes, so there it is zero; other strategies send under
    the name and in the shape under which they received.

    Raises:
        InvalidConfigError: nothing was received under the name of a tensor that is sent.
    """
    found: Tensors = {}
    for name in secret_names(params, shared):
        tensor = shared[name]
        if isinstance(params, H2TuneParams | HeteroTuneParams):
            found[name] = torch.zeros_like(tensor)
            continue
        received = plan.tensors.get(name)
        if received is None or received.shape != tensor.shape or not tensor.is_floating_point():
            raise InvalidConfigError(
                f"{name!r} is sent without having been received in the same shape, so there is no "
                f"change of it to clip: choose another strategy than {params.name.value} for "
                "differential privacy."
            )
        found[name] = received
    return found
