"""Thin factors against dense matrices made by NumPy."""

import numpy as np
import pytest
import torch

from worker.federated.low_rank import (
    LowRank,
    compact,
    difference,
    factors_of,
    joined,
    norm,
    padded,
    products_of,
    spectrum,
    truncated,
)

SHAPES = [(3, 10, 7), (3, 6, 12), (12, 9, 8)]  # rank, in, out; the last is wider than its shape


def draw(rank: int, num_in: int, num_out: int, seed: int = 0) -> LowRank:
    source = torch.Generator().manual_seed(seed)
    a = torch.randn(2, rank, num_in, generator=source)
    return LowRank(a, torch.randn(2, num_out, rank, generator=source))


def dense(product: LowRank) -> np.ndarray:
    return product.b.double().numpy() @ product.a.double().numpy()


@pytest.mark.parametrize("shape", SHAPES)
def test_spectrum_is_that_of_the_dense_matrix(shape: tuple[int, int, int]) -> None:
    product = draw(*shape)
    parts = spectrum(product)
    values = np.linalg.svd(dense(product), compute_uv=False)[:, : parts.s.shape[1]]
    np.testing.assert_allclose(parts.s.numpy(), values, rtol=1e-10)
    again = (parts.u * parts.s[:, None]).numpy() @ parts.v.numpy()
    np.testing.assert_allclose(again, dense(product), atol=1e-10)
    assert norm([product, product]) == pytest.approx(2**0.5 * np.linalg.norm(dense(product)))


def test_a_sum_and_a_difference_lose_nothing() -> None:
    one, two = draw(3, 10, 7), draw(2, 10, 7, seed=1)
    both = joined([one, two.times(0.5)])
    assert both.rank == 5
    np.testing.assert_allclose(dense(both), dense(one) + 0.5 * dense(two), atol=1e-6)
    apart = difference({"q": one}, {"q": two})["q"]
    np.testing.assert_allclose(dense(apart), dense(one) - dense(two), atol=1e-6)


def test_truncation_is_the_closest_of_its_rank() -> None:
    product = draw(5, 10, 7)
    kept = truncated(product, 2)
    assert (kept.rank, kept.a.dtype, kept.b.dtype) == (2, torch.float32, torch.float32)
    u, s, v = np.linalg.svd(dense(product), full_matrices=False)
    best = (u[:, :, :2] * s[:, None, :2]) @ v[:, :2]
    np.testing.assert_allclose(dense(kept), best, atol=1e-5)
    np.testing.assert_allclose(kept.a @ kept.a.mT, np.stack([np.eye(2)] * 2), atol=1e-5)


def test_compact_only_drops_columns_that_no_matrix_of_this_shape_needs() -> None:
    slim, wide = draw(3, 10, 7), draw(12, 9, 8)
    assert torch.equal(compact(slim).a, slim.a)
    assert compact(wide).rank == 8
    np.testing.assert_allclose(dense(compact(wide)), dense(wide), atol=1e-4)


def test_a_product_of_rank_zero_is_a_zero_matrix() -> None:
    nothing = truncated(draw(3, 10, 7), 0)
    assert (nothing.rank, nothing.max_rank, norm([nothing])) == (0, 7, 0.0)
    assert joined([nothing, draw(3, 10, 7)]).rank == 3


def test_padding_and_names() -> None:
    product = draw(3, 10, 7)
    larger = padded(product, 5)
    assert larger.rank == 5
    np.testing.assert_allclose(dense(larger), dense(product))
    tensors = factors_of({"q": product})
    assert tensors.keys() == {"A/q", "B/q"}
    assert products_of(tensors) == {"q": product}
