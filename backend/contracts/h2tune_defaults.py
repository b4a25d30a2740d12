"""What H2Tune's open parameters become in a given federation.

Measured in docs/results.md: where all clients choose among a few answers, factors fitted to codes
of public texts make shared matrices worth sharing, and then they are best left as they are.
"""

from collections.abc import Iterable
from typing import Literal

from backend.contracts.enums import TaskKind
from backend.contracts.params.base import StrategyParams
from backend.contracts.params.h2tune import H2TuneParams

Gauge = Literal["none", "orthonormal", "shared_seed", "probe"]

CHOOSING = frozenset({TaskKind.CHOICE, TaskKind.CLASSIFICATION})
"""Kinds of tasks whose answers are labels, of texts for which there are public prompts."""

PROBE_LEARNING_RATE = 1e-2
"""Of the middle matrices in the probe gauge: they start at zero, between factors of fixed size."""


def gauge_for(params: H2TuneParams, tasks: Iterable[TaskKind]) -> Gauge:
    """The gauge of a federation: the chosen one, or with `auto` what its tasks allow."""
    if params.gauge != "auto":
        return params.gauge
    return "probe" if CHOOSING.issuperset(tasks) else "none"


def exchanges_codes(params: StrategyParams, tasks: Iterable[TaskKind]) -> bool:
    """Whether clients meet once before round 1, to find the codes that their models agree on."""
    if not isinstance(params, H2TuneParams) or params.codes != "exchange":
        return False
    return gauge_for(params, tasks) == "probe"


def settled(params: H2TuneParams, gauge: Gauge) -> H2TuneParams:
    """The same parameters with nothing left open but the run's learning rate.

    Args:
        params: as the user gave them.
        gauge: from `gauge_for`, the same on the server and on all clients.
    """
    probed = gauge == "probe"
    shared_rate = PROBE_LEARNING_RATE if probed else None
    filled = {
        "gauge": gauge,
        "joint_rounds": (0 if probed else 1)
        if params.joint_rounds is None
        else params.joint_rounds,
        "shared_fraction": params.shared_fraction or (1.0 if probed else 0.5),
        "shared_learning_rate": params.shared_learning_rate or shared_rate,
    }
    return params.model_copy(update=filled)
