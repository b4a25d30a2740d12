import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.federated.privacy.secure_aggregation.errors import ProtocolError
from worker.federated.privacy.secure_aggregation.fixed_point import FixedPoint


def test_values_lie_on_the_grid() -> None:
    grid = FixedPoint(2.0**30)  # a step of 1
    encoded = grid.encode(np.array([3.0, -1.0, 0.4, -2.6]), 1.0)
    assert encoded.tolist() == [3, 2**32 - 1, 0, 2**32 - 3]
    assert grid.decode(encoded).tolist() == [3.0, -1.0, 0.0, -3.0]
    assert grid.encode(np.array([10.0]), 0.25).tolist() == [2]  # 2.5, to even


@given(
    value_range=st.floats(1e-3, 1e6),
    parts=st.lists(
        # A process in which torch has trained may flush subnormal numbers to zero.
        st.tuples(st.floats(-1, 1, allow_subnormal=False), st.integers(1, 1000)),
        min_size=1,
        max_size=20,
    ),
)
def test_sums_never_wrap_and_are_exact_to_half_a_step_a_client(
    value_range: float, parts: list[tuple[float, int]]
) -> None:
    grid = FixedPoint(value_range)
    weights = sum(weight for _, weight in parts)
    total, exact = np.zeros(1, np.uint32), 0.0
    for part, weight in parts:
        total += grid.encode(np.array([part * value_range]), weight / weights)
        exact += part * value_range * weight / weights
    bound = len(parts) * grid.step / 2 + 1e-9 * value_range
    assert abs(float(grid.decode(total)[0]) - exact) <= bound


@pytest.mark.parametrize("value", [2.1, -2.1, np.inf, np.nan])
def test_a_value_outside_the_range_is_refused_not_cut(value: float) -> None:
    with pytest.raises(ProtocolError, match="value_range is 2"):
        FixedPoint(2.0).encode(np.array([0.0, value]), 0.5)
