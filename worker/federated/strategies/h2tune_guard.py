"""What of H2Tune's client the guard remembers: factors, middle matrices `middles/<module>`, head.

The state before the client's own steps is what came from the server, so a client compares what is
shared with what it had, and the federation learns as without a guard.
"""

from functools import partial

import torch

from worker.federated.client_round import below, kept_head, snapshot, take
from worker.federated.strategies.guard import serve_better
from worker.federated.strategies.h2tune_client import ClientModel
from worker.federated.types import LocalClient, Metrics, Tensors


def current_state(braid: ClientModel, client: LocalClient) -> Tensors:
    """All that a client's answers depend on beside its base model; middles (R, R) each."""
    return {
        **below("factors", snapshot(braid.factors())),
        **below("middles", braid.held_middles()),
        **kept_head(client),
    }


def serve_shared(braid: ClientModel, client: LocalClient) -> Metrics:
    """Keeps the final shared state in place, or puts the remembered one there if that is better."""
    return serve_better(braid.model, client, partial(_restore, braid))


@torch.no_grad()
def _restore(braid: ClientModel, state: Tensors) -> None:
    factors = braid.factors()
    for name, tensor in take("factors", state).items():
        factors[name].copy_(tensor)
    received, changes = braid.held_middles(), braid.changes()
    for name, middle in take("middles", state).items():
        changes[name].add_((middle - received[name]).to(changes[name].device))
