"""Real numbers as integers modulo 2^32, so that random masks hide them and cancel exactly.

A value x of client i, |x| <= value_range, travels as round(p_i x / step) modulo 2^32 with
step = value_range / 2^30 and p_i the client's public share of all examples. As sum p_i = 1, a sum
over N clients is at most 2^30 + N / 2 in absolute value and never wraps around.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from worker.federated.privacy.secure_aggregation.errors import ValueRangeError

Residues = npt.NDArray[np.uint32]
"""Integers modulo 2^32; NumPy's unsigned sums wrap around by definition."""

STEPS = 2**30


@dataclass(frozen=True, slots=True)
class FixedPoint:
    """The common grid of one round.

    Attributes:
        value_range: largest absolute value of an entry.
    """

    value_range: float

    @property
    def step(self) -> float:
        """Distance of two neighbouring numbers."""
        return self.value_range / STEPS

    def encode(self, values: npt.NDArray[np.float64], share: float) -> Residues:
        """P x on the grid, same shape; off by at most half a step.

        Args:
            values: finite, of any shape.
            share: p, in [0, 1].

        Raises:
            ValueRangeError: a value is not finite or outside the range; it is never cut off.
        """
        largest = float(np.abs(values).max(initial=0.0))
        if not largest <= self.value_range:
            raise ValueRangeError(
                f"A shared value is {largest:.4g}, but value_range is {self.value_range:g}: raise "
                "value_range for all clients, or lower the learning rate."
            )
        return np.rint(values * (share / self.step)).astype(np.int64).astype(np.uint32)

    def decode(self, total: Residues) -> npt.NDArray[np.float64]:
        """Inverse of `encode` for sums, same shape."""
        return total.view(np.int32).astype(np.float64) * self.step
