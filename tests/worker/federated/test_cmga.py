"""Conflicts between clients: invariants over random changes, and cases worked out by hand."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from worker.federated.cmga import ConflictRule, Resolved, mean_change, resolve

RULES: list[ConflictRule] = ["cmga", "pairwise"]


def draw(seed: int, clients: int, units: int = 3, entries: int = 5, *, sparse: bool = False):
    source = torch.Generator().manual_seed(seed)
    held = torch.ones(clients, units, entries, dtype=torch.float64)
    if sparse:
        held = (torch.rand(held.shape, generator=source) < 0.6).double()
    changes = torch.randn(held.shape, generator=source, dtype=torch.float64) * held
    weights = torch.rand(clients, generator=source, dtype=torch.float64) + 0.1
    return changes, held, weights


def single(vectors: list[list[float]], rule: ConflictRule) -> Resolved:
    """One unit, everybody holds everything, equal weights."""
    changes = torch.tensor(vectors, dtype=torch.float64)[:, None]
    return resolve(rule, changes, torch.ones_like(changes), torch.ones(len(vectors)).double())


@given(st.integers(0, 10**6), st.integers(1, 6), st.booleans())
def test_no_change_points_against_the_mean(seed: int, clients: int, sparse: bool) -> None:
    changes, held, weights = draw(seed, clients, sparse=sparse)
    mean = mean_change(changes, held, weights)
    resolved = resolve("cmga", changes, held, weights)
    assert float((resolved.changes * mean).sum(dim=-1).min()) >= -1e-12
    before = (changes * mean).sum(dim=-1)
    untouched = before >= 0
    assert torch.equal(resolved.changes[untouched], changes[untouched])
    assert resolved.num_conflicts == int((before < 0).sum())
    assert not resolved.changes[held == 0].any(), "nobody moves what he does not hold"


@given(st.integers(0, 10**6), st.integers(2, 6))
def test_the_mean_keeps_its_direction_and_grows_by_a_known_factor(seed: int, clients: int) -> None:
    """mean(d') = (1 + sum_conflicting p_i |<d_i, g>| / |g|^2) g, in NumPy, unit by unit."""
    changes, held, weights = draw(seed, clients)
    actual = mean_change(resolve("cmga", changes, held, weights).changes, held, weights).numpy()
    shares = (weights / weights.sum()).numpy()
    for unit in range(changes.shape[1]):
        vectors = changes[:, unit].numpy()
        mean = shares @ vectors
        along = vectors @ mean
        factor = 1 + (shares * np.maximum(-along, 0)).sum() / (mean @ mean)
        np.testing.assert_allclose(actual[unit], factor * mean, rtol=1e-9)
        assert np.linalg.norm((factor - 1) * mean) <= np.linalg.norm(vectors, axis=1).max()


@pytest.mark.parametrize("rule", RULES)
@given(st.integers(0, 10**6), st.integers(1, 5))
def test_without_conflict_it_is_the_plain_mean(rule: ConflictRule, seed: int, clients: int) -> None:
    changes, held, weights = draw(seed, clients)
    resolved = resolve(rule, changes.abs(), held, weights)  # no negative product is possible
    assert torch.equal(resolved.changes, changes.abs())
    assert resolved.num_conflicts == 0
    assert resolved.conflict_rate == 0.0


@pytest.mark.parametrize("rule", RULES)
def test_a_single_client_is_left_alone(rule: ConflictRule) -> None:
    changes, held, weights = draw(5, 1, sparse=True)
    resolved = resolve(rule, changes, held, weights)
    assert torch.equal(resolved.changes, changes)
    torch.testing.assert_close(mean_change(resolved.changes, held, weights), changes[0])


@pytest.mark.parametrize("rule", RULES)
@given(st.integers(0, 10**6), st.permutations(range(5)))
def test_order_of_clients_is_irrelevant(rule: ConflictRule, seed: int, order: list[int]) -> None:
    changes, held, weights = draw(seed, 5, sparse=True)
    one = resolve(rule, changes, held, weights)
    other = resolve(rule, changes[order], held[order], weights[order])
    torch.testing.assert_close(other.changes, one.changes[order])
    assert (other.num_conflicts, other.num_compared) == (one.num_conflicts, one.num_compared)


def test_cmga_by_hand() -> None:
    """Mean of (3, 0), (-1, 2), (1, 1) is (1, 1); only <(-2.., ..), g> < 0 is taken out."""
    resolved = single([[4.0, 0.0], [-3.0, 1.0], [2.0, 2.0]], "cmga")
    # g = (1, 1); <(-3, 1), g> = -2, so (-3, 1) + (2 / 2) (1, 1) = (-2, 2).
    torch.testing.assert_close(
        resolved.changes[:, 0], torch.tensor([[4.0, 0.0], [-2.0, 2.0], [2.0, 2.0]]).double()
    )
    assert resolved.conflict_rate == pytest.approx(1 / 3)


def test_pairwise_by_hand() -> None:
    """(2, 0) and (-1, 1) conflict: each loses its part along the other."""
    resolved = single([[2.0, 0.0], [-1.0, 1.0]], "pairwise")
    # (2, 0) - (-2 / 2) (-1, 1) = (1, 1); (-1, 1) - (-2 / 4) (2, 0) = (0, 1).
    torch.testing.assert_close(
        resolved.changes[:, 0], torch.tensor([[1.0, 1.0], [0.0, 1.0]]).double()
    )
    assert (resolved.num_conflicts, resolved.num_compared) == (1, 1)


def test_pairwise_takes_the_worst_partner_first() -> None:
    """Against (-1, 0) first (cosine -1) (1, 0) becomes zero; (-1, 3) then finds nothing left."""
    resolved = single([[1.0, 0.0], [-1.0, 3.0], [-1.0, 0.0]], "pairwise")
    torch.testing.assert_close(resolved.changes[0, 0], torch.zeros(2).double())
    assert resolved.num_conflicts == 2


@pytest.mark.parametrize("rule", RULES)
def test_opposite_changes_and_idle_clients_give_no_nonsense(rule: ConflictRule) -> None:
    resolved = single([[1.0, -2.0], [-1.0, 2.0], [0.0, 0.0]], rule)
    assert torch.isfinite(resolved.changes).all()
    assert not resolved.changes[2].any(), "who changed nothing still changes nothing"
    if rule == "cmga":  # the mean is zero: nothing points against it
        assert resolved.num_conflicts == 0


def test_mean_divides_by_those_who_hold_an_entry() -> None:
    changes = torch.tensor([[[1.0, 2.0, 0.0]], [[4.0, 0.0, 0.0]]], dtype=torch.float64)
    held = torch.tensor([[[1.0, 1.0, 0.0]], [[1.0, 0.0, 0.0]]], dtype=torch.float64)
    mean = mean_change(changes, held, torch.tensor([3.0, 1.0], dtype=torch.float64))
    torch.testing.assert_close(mean, torch.tensor([[1.75, 2.0, 0.0]], dtype=torch.float64))
