import pytest
import torch
from transformers import MambaConfig

from tests.worker.federated.tiny import MODELS, make_model
from worker.federated.errors import UnsupportedModelError
from worker.federated.roles import (
    FAMILIES,
    adapted_modules,
    architecture_of,
    family_of,
    module_shapes,
    target_suffixes,
)

# Width 32, feed-forward 48 (128 for GPT-2), 4 heads of 8 with 2 for keys and values where grouped.
EXPECTED_SHAPES = {
    "llama": {
        "q": (32, 32),
        "k": (32, 16),
        "v": (32, 16),
        "o": (32, 32),
        "gate": (32, 48),
        "up": (32, 48),
        "down": (48, 32),
    },
    "phi3": {"qkv": (32, 64), "o": (32, 32), "gate_up": (32, 96), "down": (48, 32)},
    "gpt2": {"qkv": (32, 96), "o": (32, 32), "up": (32, 128), "down": (128, 32)},
    "bert": {
        "q": (32, 32),
        "k": (32, 32),
        "v": (32, 32),
        "o": (32, 32),
        "up": (32, 48),
        "down": (48, 32),
    },
}


def test_every_family_has_a_test_model() -> None:
    assert MODELS.keys() == FAMILIES.keys()


@pytest.mark.parametrize("family", EXPECTED_SHAPES)
def test_shapes_of_roles(family: str) -> None:
    shapes = module_shapes(make_model(family))
    found = {role: (shape.in_features, shape.out_features) for role, shape in shapes.items()}
    assert found == EXPECTED_SHAPES[family]


@pytest.mark.parametrize("family", FAMILIES)
def test_modules_are_found_with_and_without_a_head(family: str) -> None:
    model = make_model(family, num_layers=3)
    modules = adapted_modules(model)
    assert [(module.layer, module.role) for module in modules] == [
        (layer, role) for layer in range(3) for role in FAMILIES[family].roles
    ]
    for module in modules:
        assert model.get_submodule(module.name) is not None
    bare = adapted_modules(model.base_model)
    assert [(m.layer, m.role) for m in bare] == [(m.layer, m.role) for m in modules]
    assert architecture_of(model).num_layers == 3


@pytest.mark.parametrize("family", FAMILIES)
def test_suffixes_match_the_adapted_modules_and_nothing_else(family: str) -> None:
    model = make_model(family)
    modules = adapted_modules(model)
    suffixes = tuple(f".{suffix}" for suffix in target_suffixes(model, modules))
    matched = {name for name, _ in model.named_modules() if f".{name}".endswith(suffixes)}
    assert matched == {module.name for module in modules}


def test_suffixes_of_some_modules_leave_out_the_others() -> None:
    model = make_model("bert")
    first = [module for module in adapted_modules(model) if module.layer == 0]
    suffixes = tuple(f".{suffix}" for suffix in target_suffixes(model, first))
    matched = {name for name, _ in model.named_modules() if f".{name}".endswith(suffixes)}
    assert matched == {module.name for module in first}


def test_roles_work_on_the_meta_device() -> None:
    with torch.device("meta"):
        model = MODELS["llama"](2, 32)
    assert len(adapted_modules(model)) == 2 * 7


def test_unknown_family_shows_how_to_add_a_row() -> None:
    with pytest.raises(UnsupportedModelError, match=r'"mamba": Family\(layers='):
        family_of(MambaConfig().model_type)


def test_a_missing_module_is_named() -> None:
    model = make_model("llama")
    del model.model.layers[1].mlp.up_proj
    with pytest.raises(UnsupportedModelError, match=r"nothing at 'model\.layers\.1\.mlp\.up_proj'"):
        adapted_modules(model)


def test_layers_of_different_shape_are_refused() -> None:
    model = make_model("llama")
    model.model.layers[1].mlp.up_proj = torch.nn.Linear(32, 40)
    with pytest.raises(UnsupportedModelError, match="layers are all alike"):
        module_shapes(model)
