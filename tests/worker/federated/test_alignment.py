import math

import pytest
import torch

from worker.federated.alignment import (
    interpolation,
    map_down,
    map_up,
    orthonormality_error,
    retract,
    row_entropy,
    start_alignment,
)
from worker.federated.errors import InvalidConfigError


def source() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_interpolation_places_layers_by_relative_depth() -> None:
    # Three layers over six slots sit at positions 0, 2.5 and 5.
    expected = torch.zeros(6, 3)
    expected[0, 0] = expected[5, 2] = 1.0
    expected[2, 1] = expected[3, 1] = 0.5
    torch.testing.assert_close(interpolation(6, 3), expected)


@pytest.mark.parametrize("depth", [1, 2, 7])
def test_equal_depths_give_the_identity(depth: int) -> None:
    start = start_alignment("interpolation", "orthonormal", depth, depth, source())
    torch.testing.assert_close(start, torch.eye(depth))


def test_a_single_layer_sits_in_the_middle() -> None:
    assert interpolation(5, 1).flatten().tolist() == [0, 0, 1, 0, 0]


@pytest.mark.parametrize(("slots", "layers"), [(28, 18), (28, 24), (6, 3), (4, 1)])
@pytest.mark.parametrize("start", ["interpolation", "random"])
@pytest.mark.parametrize("constraint", ["orthonormal", "pseudo_inverse"])
def test_down_after_up_is_the_identity(
    slots: int, layers: int, start: str, constraint: str
) -> None:
    alignment = start_alignment(start, constraint, slots, layers, source())
    matrices = torch.randn(layers, 5, 5, generator=source())
    again = map_down(alignment, map_up(alignment, matrices, constraint))
    assert (again - matrices).norm() / matrices.norm() < 1e-5


def test_plain_transpose_would_lose_what_it_maps() -> None:
    # Why a constraint is needed: without one, a random 28 x 18 alignment does not come back.
    alignment = torch.randn(28, 18, generator=source()) / 28**0.5
    matrices = torch.randn(18, 5, 5, generator=source())
    again = map_down(alignment, map_up(alignment, matrices, "orthonormal"))
    assert (again - matrices).norm() / matrices.norm() > 0.3


def test_retraction_gives_the_nearest_orthonormal_columns() -> None:
    raw = interpolation(28, 18)
    polar = retract(raw)
    assert orthonormality_error(polar) < 1e-6
    # No other orthonormal matrix may be nearer; try small rotations of the columns.
    skew = torch.randn(18, 18, generator=source())
    rotation = torch.linalg.matrix_exp(0.05 * (skew - skew.T))
    assert (polar - raw).norm() < (polar @ rotation - raw).norm()
    cosine = (polar * raw).sum() / (polar.norm() * raw.norm())
    assert cosine > 0.99


def test_orthonormality_error_is_the_largest_deviation() -> None:
    assert orthonormality_error(torch.diag(torch.tensor([1.0, 2.0]))) == pytest.approx(3.0)


def test_more_layers_than_slots_are_refused() -> None:
    with pytest.raises(InvalidConfigError, match="num_layers is 5"):
        start_alignment("interpolation", "orthonormal", 4, 5, source())


def test_identity_needs_equal_depths() -> None:
    with pytest.raises(InvalidConfigError, match="equal depth"):
        start_alignment("identity", "orthonormal", 4, 3, source())


def test_row_entropy_counts_the_layers_that_share_a_slot() -> None:
    assert row_entropy(torch.eye(4)) == 0
    assert row_entropy(torch.full((3, 4), -0.5)) == pytest.approx(math.log(4))
    # Half and half, then all of one; the empty slot says nothing.
    mixed = torch.tensor([[1.0, 1.0], [0.0, 2.0], [0.0, 0.0]])
    assert row_entropy(mixed) == pytest.approx(math.log(2) / 2)
    assert row_entropy(torch.zeros(2, 2)) == 0
