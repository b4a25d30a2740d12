"""What hostile clients may do, for simulations and tests: changes an update before it leaves."""

from collections.abc import Callable
from dataclasses import replace

import torch

from backend.contracts.strategies import Params
from worker.federated.privacy.exposure import references
from worker.federated.seeds import generator
from worker.federated.types import ClientPlan, ClientUpdate

Tamper = Callable[[ClientPlan, ClientUpdate], ClientUpdate]
"""The update that leaves in place of the honest one, by what the client received."""


def honest(_plan: ClientPlan, update: ClientUpdate) -> ClientUpdate:
    """The update as it is."""
    return update


def sign_flip(params: Params, factor: float = 100.0) -> Tamper:
    """The client's change, turned round and that many times as long.

    Args:
        params: of the strategy.
        factor: above 0; 1 only turns it round.
    """

    def tamper(plan: ClientPlan, update: ClientUpdate) -> ClientUpdate:
        received = references(params, plan, update.shared)
        flipped = {
            name: start - factor * (update.shared[name] - start) for name, start in received.items()
        }
        return replace(update, shared={**update.shared, **flipped})

    return tamper


def random_noise(params: Params, deviation: float) -> Tamper:
    """Gaussian noise in place of the client's change, its own in every round.

    Args:
        params: of the strategy.
        deviation: standard deviation of every number, above 0.
    """

    def tamper(plan: ClientPlan, update: ClientUpdate) -> ClientUpdate:
        source = generator(plan.seed, "attack", plan.client_id, plan.round_number)
        noised = {
            name: start + deviation * torch.randn(start.shape, generator=source)
            for name, start in references(params, plan, update.shared).items()
        }
        return replace(update, shared={**update.shared, **noised})

    return tamper
