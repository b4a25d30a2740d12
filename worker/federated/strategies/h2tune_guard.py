"""The guard: a client serves the shared state unless its own validation split says otherwise.

Training goes on from what is shared in any case, so the federation learns as without a guard; only
what a client *delivers* is guarded. Wherever a round is measured, the state that came from the
server and the one after the client's own steps compete with the best one so far by validation
loss. When the final shared state arrives, it is served unless the remembered one is better.

What is remembered is private: `served/factors/...`, `served/middles/<module>` (R, R),
`served/head/...` and `served/loss` (1,) in nats.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from backend.contracts.metrics import MetricName
from worker.federated.client_round import Measured, below, measure, snapshot, take
from worker.federated.strategies.h2tune_client import ClientModel
from worker.federated.types import LocalClient, Metrics, Tensors


@dataclass(frozen=True, slots=True)
class Served:
    """A state that a client could serve, and its validation loss."""

    loss: float
    tensors: Tensors  # on the CPU

    def kept(self) -> Tensors:
        """As part of what the client keeps."""
        loss = torch.tensor([self.loss], dtype=torch.float64)
        return below("served", {**self.tensors, "loss": loss})


def current_state(braid: ClientModel, client: LocalClient) -> Tensors:
    """All that a client's answers depend on beside its base model."""
    return {
        **below("factors", snapshot(braid.factors())),
        **below("middles", braid.held_middles()),
        **below("head", snapshot(client.objective.head)),
    }


def remembered(private: Tensors | None) -> Served | None:
    """The best state so far; None if none was measured yet."""
    tensors = take("served", private)
    if not tensors:
        return None
    return Served(float(tensors.pop("loss")), tensors)


def better(known: Served | None, measured: Measured | None, state: Tensors) -> Served | None:
    """The better of the two by validation loss; equal ones go to the newer."""
    if measured is None or measured.validation_loss is None:
        return known
    if known is not None and known.loss < measured.validation_loss:
        return known
    return Served(measured.validation_loss, state)


def serve_better(braid: ClientModel, client: LocalClient) -> Metrics:
    """Measures the final state, puts the remembered one in its place if that is better.

    Returns:
        `accuracy_delivered` of what is served, and `guard_kept_own`: 1 where the client did not
        take the final shared state.
    """
    final, known = measure(braid.model, client), remembered(client.private)
    keeps_own = (
        known is not None
        and final.validation_loss is not None
        and known.loss < final.validation_loss
    )
    if known is not None and keeps_own:
        _restore(braid, client, known.tensors)
        final = measure(braid.model, client)
    return {
        MetricName.ACCURACY_DELIVERED: final.accuracy,
        MetricName.GUARD_KEPT_OWN: float(keeps_own),
    }


@torch.no_grad()
def _restore(braid: ClientModel, client: LocalClient, state: Tensors) -> None:
    parts: dict[str, Mapping[str, torch.Tensor]] = {
        "factors": braid.factors(),
        "head": client.objective.head,
    }
    for prefix, parameters in parts.items():
        for name, tensor in take(prefix, state).items():
            parameters[name].copy_(tensor)
    received, changes = braid.held_middles(), braid.changes()
    for name, middle in take("middles", state).items():
        changes[name].add_((middle - received[name]).to(changes[name].device))
