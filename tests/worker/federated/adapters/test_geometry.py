import pytest
import torch

from worker.federated.adapters.geometry import make_geometry
from worker.federated.errors import InvalidConfigError


@pytest.mark.parametrize("layout", ["block", "mask", "gather"])
@pytest.mark.parametrize(("rank", "zeros"), [(2, 1 - 4 / 64), (4, 0.75), (8, 0.0)])
def test_zeros_follow_from_the_rank(layout: str, rank: int, zeros: float) -> None:
    geometry = make_geometry(layout, rank, 8)
    selected = geometry.select(geometry.start_scores(torch.Generator().manual_seed(0)))
    held = geometry.held_entries(selected)
    assert len(set(held.tolist())) == geometry.num_kept
    assert 1 - len(held) / 64 == pytest.approx(zeros)


def test_block_holds_rows_and_columns_of_the_winning_indices() -> None:
    geometry = make_geometry("block", 2, 4)
    selected = geometry.select(torch.tensor([0.1, 0.9, 0.2, 0.5]))
    assert selected.tolist() == [1, 3]
    # Entries (1,1), (1,3), (3,1), (3,3) of a 4 x 4 matrix in row order.
    assert geometry.held_entries(selected).tolist() == [5, 7, 13, 15]


def test_ties_go_to_the_smaller_position() -> None:
    assert make_geometry("block", 2, 4).select(torch.zeros(4)).tolist() == [0, 1]


def test_blocks_start_nested() -> None:
    source = torch.Generator()
    held = [
        set(geometry.held_entries(geometry.select(geometry.start_scores(source))).tolist())
        for geometry in (make_geometry("block", rank, 8) for rank in (2, 4, 8))
    ]
    assert held[0] < held[1] < held[2]


def test_explicit_sparsity() -> None:
    assert make_geometry("mask", 4, 8, 0.9).num_kept == 6  # 64 * 0.1 = 6.4
    assert make_geometry("block", 4, 8, 0.9).kept_rank == 3  # 8 * sqrt(0.1) = 2.53


@pytest.mark.parametrize(
    ("rank", "global_rank", "sparsity", "message"),
    [
        (0, 8, None, "lora_rank is 0"),
        (9, 8, None, "lora_rank is 9 but global_rank is 8"),
        (4, 8, 1.0, "sparsity is 1.0"),
        (4, 8, -0.1, "sparsity is -0.1"),
        (4, 8, 0.5, "raise lora_rank to 6"),
    ],
)
def test_values_out_of_range_are_refused_by_name(
    rank: int, global_rank: int, sparsity: float | None, message: str
) -> None:
    with pytest.raises(InvalidConfigError, match=message):
        make_geometry("block", rank, global_rank, sparsity)


def test_unknown_layout_is_refused() -> None:
    with pytest.raises(InvalidConfigError, match="layout is 'rows'"):
        make_geometry("rows", 4, 8)
