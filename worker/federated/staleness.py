"""Updates of earlier rounds count less: w = n (1 + tau)^-a.

n is the client's number of examples, tau by how many rounds the state has moved on since the client
received its plan, a >= 0 the exponent. With a = 0 age does not matter, and nothing is touched; with
a = 1/2 an update that is three rounds old counts half. After FedAsync (arXiv 1903.03934: polynomial
staleness) with the buffer of FedBuff (arXiv 2106.06639). Deviation: the weights are relative to one
another, as those of examples are, so a round of equally old updates moves the state as far as ever.

Strategies weigh by `num_examples`, which stays a whole number on the wire: where any update is
stale, all weights are scaled by 2^20 before they are rounded, and that common factor cancels out.
HetLoRA weighs by norms and Co-LoRA keeps everybody's newest module: there age has no effect.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

from worker.federated.types import ClientUpdate

SCALE = 2**20
"""Whole steps per example: rounding changes a weight by less than a millionth of an example."""


def discounted(
    updates: Iterable[ClientUpdate], staleness: Mapping[str, int], exponent: float
) -> Iterator[ClientUpdate]:
    """The updates one at a time, with weights that fall with their age.

    Args:
        updates: of one aggregation.
        staleness: rounds by client id, 0 for an update of the round itself.
        exponent: a >= 0.
    """
    if exponent == 0 or not any(staleness.values()):
        yield from updates
        return
    for update in updates:
        share = float(1 + staleness[update.client_id]) ** -exponent
        yield replace(update, num_examples=max(1, round(update.num_examples * SCALE * share)))
