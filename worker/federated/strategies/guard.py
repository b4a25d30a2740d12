"""The guard: a client delivers its final state unless its own validation split says otherwise.

Training goes on from the newest state in any case; only what a client *delivers* is guarded.
Wherever a round is measured, the state before the client's own steps and the one after them
compete with the best one so far by validation loss. The final state is always measured, and
delivered unless the remembered one is better. A client without a validation split has nothing to
judge by: it remembers nothing and delivers its final state.

What is remembered is private, below `served`: the strategy's own tensors, `head/...`, and `loss`
(1,) in nats.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from transformers import PreTrainedModel

from backend.contracts.metrics import MetricName
from worker.federated.client_round import below, load_head, measure, take
from worker.federated.types import LocalClient, Metrics, Tensors


@dataclass(frozen=True, slots=True)
class Served:
    """A state that a client could deliver, and its validation loss."""

    loss: float
    tensors: Tensors  # on the CPU

    def kept(self) -> Tensors:
        """As part of what the client keeps."""
        loss = torch.tensor([self.loss], dtype=torch.float64)
        return below("served", {**self.tensors, "loss": loss})


def remembered(private: Tensors | None) -> Served | None:
    """The best state so far; None if none was measured yet."""
    tensors = take("served", private)
    if not tensors:
        return None
    return Served(float(tensors.pop("loss")), tensors)


def better(known: Served | None, loss: float | None, state: Tensors) -> Served | None:
    """The better of the two by validation loss; equal ones go to the newer.

    Args:
        known: the best so far.
        loss: of the newer state; None: it was not measured, or there is no validation split.
        state: the newer one.
    """
    if loss is None or (known is not None and known.loss < loss):
        return known
    return Served(loss, state)


def still_kept(
    private: Tensors | None, measured: Metrics, received: Tensors, trained: Tensors
) -> Tensors:
    """The best state so far after one more round, as part of what the client keeps.

    Args:
        private: what the client kept from the rounds before.
        measured: metrics of the round, among them the validation losses if there are any.
        received: state before training.
        trained: state after it.
    """
    best = remembered(private)
    best = better(best, measured.get(MetricName.VALIDATION_LOSS_BEFORE_TRAINING), received)
    best = better(best, measured.get(MetricName.VALIDATION_LOSS_AFTER_TRAINING), trained)
    return {} if best is None else best.kept()


def serve_better(
    model: PreTrainedModel, client: LocalClient, restore: Callable[[Tensors], None]
) -> Metrics:
    """Measures the final state, puts the remembered one in its place if that is better.

    Args:
        model: with the final state in it.
        client: whose model and head these are; they are changed in place.
        restore: puts a remembered state into the model; the head is put back here.

    Returns:
        `accuracy_delivered` of what is served, and `guard_kept_own`: 1 where that is an earlier
        state than the final one.
    """
    final, known = measure(model, client), remembered(client.private)
    keeps_own = (
        known is not None
        and final.validation_loss is not None
        and known.loss < final.validation_loss
    )
    if known is not None and keeps_own:
        restore(known.tensors)
        origin = f"the store of client {client.spec.client_id!r}"
        load_head(replace(client, private=known.tensors), origin)
        final = measure(model, client)
    return {
        MetricName.ACCURACY_DELIVERED: final.accuracy,
        MetricName.GUARD_KEPT_OWN: float(keeps_own),
    }
