import pytest

from tests.worker.federated.tiny import MODELS, make_model
from worker.federated.blocks import block_ends, blocks_of, slot_of
from worker.federated.errors import UnsupportedModelError


@pytest.mark.parametrize("family", MODELS)
def test_blocks_of_every_family(family: str) -> None:
    model = make_model(family, num_layers=3, width=48)
    blocks = blocks_of(model)
    assert [block.layer for block in blocks] == [0, 1, 2]
    assert {block.width for block in blocks} == {48}
    assert all(model.get_submodule(block.name) is not None for block in blocks)


def test_a_model_without_layers_is_named() -> None:
    model = make_model("llama")
    model.config.model_type = "gpt2"
    with pytest.raises(UnsupportedModelError, match=r"no list of layers at 'model\.h'"):
        blocks_of(model)


@pytest.mark.parametrize(
    ("num_layers", "num_slots", "expected"),
    [(1, 1, [0]), (1, 4, [1]), (2, 5, [0, 4]), (3, 4, [0, 2, 3]), (4, 4, [0, 1, 2, 3])],
)
def test_slots_lie_at_the_same_relative_depth(
    num_layers: int, num_slots: int, expected: list[int]
) -> None:
    assert [slot_of(layer, num_layers, num_slots) for layer in range(num_layers)] == expected


def test_different_layers_never_share_a_slot() -> None:
    for num_slots in range(1, 40):
        for num_layers in range(1, num_slots + 1):
            slots = [slot_of(layer, num_layers, num_slots) for layer in range(num_layers)]
            assert slots == sorted(set(slots))
            assert slots[0] >= 0
            assert slots[-1] < num_slots


@pytest.mark.parametrize(
    ("num_layers", "num_blocks", "expected"),
    [(8, 4, [1, 3, 5, 7]), (6, 4, [1, 2, 4, 5]), (4, 4, [0, 1, 2, 3]), (5, 1, [4])],
)
def test_block_ends(num_layers: int, num_blocks: int, expected: list[int]) -> None:
    assert block_ends(num_layers, num_blocks) == expected
