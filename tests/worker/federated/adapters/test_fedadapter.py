"""FedAdapter as a PEFT method, on every family of the role table."""

import copy
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict

from tests.worker.federated.tiny import MODELS, make_inputs, make_model
from worker.federated.adapters import FedAdapterBlock, FedAdapterConfig, FedAdapterModel
from worker.federated.adapters.fedadapter_layer import start_branches
from worker.federated.errors import InvalidConfigError, UnsupportedModelError

GATINGS = ["scalars", "softmax"]


def config(**changes: object) -> FedAdapterConfig:
    return FedAdapterConfig(**{"bottleneck": 4, "num_branches": 3, **changes})


def blocks(model: PeftModel) -> list[FedAdapterBlock]:
    return [m for m in model.get_base_model().modules() if isinstance(m, FedAdapterBlock)]


@torch.no_grad()
def stir(model: PeftModel, size: float = 0.2) -> None:
    """Moves every adapter parameter away from its start."""
    source = torch.Generator().manual_seed(7)
    for name, parameter in model.named_parameters():
        if "fedadapter_" in name:
            parameter += size * torch.randn(parameter.shape, generator=source)


def logits(model: torch.nn.Module, family: str) -> torch.Tensor:
    result: torch.Tensor = model(**make_inputs(family)).logits
    return result


@pytest.mark.parametrize("family", MODELS)
def test_family(family: str, tmp_path: Path) -> None:
    base = make_model(family)
    untouched = logits(base, family)
    model = get_peft_model(copy.deepcopy(base), config(gating="softmax")).eval()
    assert isinstance(model.base_model, FedAdapterModel)
    assert len(blocks(model)) == 2
    assert torch.equal(logits(model, family), untouched), "a fresh adapter changes nothing"

    stir(model)
    expected = logits(model, family)
    assert not torch.allclose(expected, untouched, rtol=1e-3)
    expected.float().pow(2).sum().backward()
    for name, parameter in model.named_parameters():
        if "fedadapter_" in name:
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
        else:
            assert parameter.grad is None, name
    with model.disable_adapter():
        assert torch.equal(logits(model, family), untouched)

    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path).eval()
    assert loaded.peft_config["default"].peft_type == "FEDADAPTER"
    assert torch.equal(logits(loaded, family), expected)
    assert torch.equal(logits(model.unload(), family), untouched)


@pytest.mark.parametrize("gating", GATINGS)
@pytest.mark.parametrize("activation", ["relu", "gelu", "silu", "identity"])
def test_update_equals_the_formula(gating: str, activation: str) -> None:
    """h + U phi(sum_b g_b F_b D h), token by token in NumPy."""
    model = get_peft_model(make_model("llama"), config(gating=gating, activation=activation))
    stir(model)
    block = blocks(model)[0]
    down, up, shared, gate = (
        getattr(block, f"fedadapter_{letter}")["default"].detach().double().numpy()
        for letter in "DUFG"
    )
    phi = {
        "relu": lambda v: np.maximum(v, 0),
        "gelu": lambda v: v * np.vectorize(lambda a: 0.5 * (1 + math.erf(a / math.sqrt(2))))(v),
        "silu": lambda v: v / (1 + np.exp(-v)),
        "identity": lambda v: v,
    }[activation]
    hidden = torch.randn(2, 3, 32, generator=torch.Generator().manual_seed(1))
    actual = block.update("default", hidden).detach().double().numpy()
    for row in range(2):
        for token in range(3):
            narrow = down @ hidden[row, token].double().numpy()
            weights = gate
            if gating == "softmax":
                weights = np.exp(gate @ narrow) / np.exp(gate @ narrow).sum()
            mixed = sum(w * (branch @ narrow) for w, branch in zip(weights, shared, strict=True))
            np.testing.assert_allclose(actual[row, token], up @ phi(mixed), rtol=1e-4, atol=1e-5)


def test_branches_start_near_the_identity_and_nested() -> None:
    small, large = start_branches(3, 1, 2, 4), start_branches(3, 1, 5, 4)
    assert torch.equal(small, large[:2])
    assert 0 < float((large - torch.eye(4)).abs().max()) < 0.1
    assert not torch.equal(large, start_branches(3, 2, 5, 4))


def test_state_reloads_strictly() -> None:
    model = get_peft_model(make_model("llama"), config())
    stir(model)
    state = get_peft_model_state_dict(model)
    assert len(state) == 2 * 4, "D, U, F and G of two blocks, and nothing of the base model"
    other = get_peft_model(make_model("llama"), config(seed=5))
    report = set_peft_model_state_dict(other, state)
    assert not report.unexpected_keys
    assert not [key for key in report.missing_keys if "fedadapter" in key]
    again = get_peft_model_state_dict(other)
    assert all(torch.equal(tensor, again[key]) for key, tensor in state.items())
    other.load_state_dict(model.state_dict(), strict=True)


def test_a_tuple_of_a_block_keeps_its_other_entries() -> None:
    class Pair(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(1))
            self.kind = "pair"

        def forward(self, hidden: torch.Tensor) -> tuple[torch.Tensor, str]:
            return hidden, "attention"

    place = blocks(get_peft_model(make_model("llama"), config()))[0].block
    block = FedAdapterBlock(Pair(), "default", place, config())
    with torch.no_grad():
        block.fedadapter_U["default"].fill_(0.1)
    hidden = torch.randn(1, 2, 32, generator=torch.Generator().manual_seed(0))
    adapted, second = block(hidden)
    assert second == "attention"
    torch.testing.assert_close(adapted, hidden + block.update("default", hidden))
    assert block.kind == "pair", "a model that looks into its block finds the block"
    with pytest.raises(AttributeError, match="nothing"):
        _ = block.nothing


def test_adapters_live_side_by_side_in_single_precision() -> None:
    base = make_model("llama").to(torch.bfloat16)
    untouched = logits(base, "llama")
    model = get_peft_model(base, config()).eval()
    stir(model)
    first = logits(model, "llama")
    assert first.dtype == torch.bfloat16
    assert blocks(model)[0].fedadapter_D["default"].dtype == torch.float32
    model.add_adapter("second", config(num_branches=1, gating="softmax"))
    assert torch.equal(logits(model, "llama"), first)
    model.set_adapter("second")
    assert torch.equal(logits(model, "llama"), untouched)
    model.set_adapter("default")
    model.delete_adapter("second")
    assert torch.equal(logits(model, "llama"), first)


def test_generation_with_a_cache_sees_what_one_pass_sees() -> None:
    """The gate looks at each token alone, so what comes later cannot change what came before."""
    model = get_peft_model(make_model("llama"), config(gating="softmax")).eval()
    stir(model)
    inputs = make_inputs("llama")["input_ids"]
    with torch.no_grad():
        whole = model(input_ids=inputs).logits
        part = model(input_ids=inputs[:, :4]).logits
    torch.testing.assert_close(whole[:, :4], part)


def test_some_blocks_only() -> None:
    model = get_peft_model(make_model("llama"), config(target_modules=["layers.1"]))
    assert [block.block.layer for block in blocks(model)] == [1]


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="lm_head"):
        get_peft_model(make_model("llama"), config(target_modules=["layers.1", "lm_head"]))
    with pytest.raises(InvalidConfigError, match="bottleneck of FedAdapterConfig is 0"):
        get_peft_model(make_model("llama"), config(bottleneck=0))
    model = get_peft_model(make_model("llama"), config())
    with pytest.raises(UnsupportedModelError, match="cannot be merged"):
        model.merge_adapter()
    with pytest.raises(InvalidConfigError, match="LoraConfig"):
        FedAdapterModel(make_model("llama"), LoraConfig(target_modules=["q_proj"]), "default")
