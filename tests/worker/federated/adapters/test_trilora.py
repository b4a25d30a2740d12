"""TriLoRA as a PEFT method, on every family of the role table."""

import copy
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict

from tests.worker.federated.tiny import MODELS, make_inputs, make_model
from worker.federated.adapters import TriLoraConfig, TriLoraLinear, export_lora, folded
from worker.federated.adapters.stack import MiddleStack
from worker.federated.errors import InvalidConfigError, NonFiniteError, UnsupportedModelError
from worker.federated.roles import adapted_modules

LAYOUTS = ["block", "mask", "gather"]


def config(layout: str = "block", **changes: object) -> TriLoraConfig:
    values = {"r": 4, "global_rank": 8, "num_slots": 3, "lora_alpha": 10.0, "layout": layout}
    return TriLoraConfig(**{**values, **changes})


def stack_of(model: PeftModel) -> MiddleStack:
    stack = model.base_model.trilora_stacks["default"]
    assert isinstance(stack, MiddleStack)
    return stack


def layers_of(model: PeftModel) -> dict[str, TriLoraLinear]:
    modules = model.get_base_model().named_modules()
    return {name: module for name, module in modules if isinstance(module, TriLoraLinear)}


@torch.no_grad()
def stir(model: PeftModel, size: float = 0.2) -> None:
    """Moves every adapter parameter and slot away from its start."""
    source = torch.Generator().manual_seed(7)
    for name, parameter in model.named_parameters():
        if "trilora_" in name:
            parameter += size * torch.randn(parameter.shape, generator=source)
    for name, buffer in model.named_buffers():
        if ".slots_" in name:
            buffer += size * torch.randn(buffer.shape, generator=source)


def logits(model: torch.nn.Module, family: str) -> torch.Tensor:
    result: torch.Tensor = model(**make_inputs(family)).logits
    return result


def relative(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return float((actual - expected).detach().norm() / expected.detach().norm())


@pytest.mark.parametrize("family", MODELS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_family(family: str, layout: str, tmp_path: Path) -> None:
    base = make_model(family)
    untouched = logits(base, family)
    model = get_peft_model(copy.deepcopy(base), config(layout)).eval()
    assert torch.equal(logits(model, family), untouched), "a fresh adapter changes nothing"

    stir(model)
    expected = logits(model, family)
    assert relative(expected, untouched) > 1e-3
    expected.float().pow(2).sum().backward()
    for name, parameter in model.named_parameters():
        if "trilora_" in name:
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
        else:
            assert parameter.grad is None, name
    with model.disable_adapter():
        assert torch.equal(logits(model, family), untouched)

    model.save_pretrained(tmp_path / "own")
    loaded = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path / "own").eval()
    assert torch.equal(logits(loaded, family), expected)

    export_lora(model, tmp_path / "plain")
    plain = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path / "plain").eval()
    assert isinstance(plain.peft_config["default"], LoraConfig)
    assert plain.peft_config["default"].r == (8 if layout == "mask" else 4)
    assert relative(logits(plain, family), expected) <= 1e-5

    model.merge_adapter()
    assert relative(logits(model, family), expected) <= 2e-5
    model.unmerge_adapter()
    assert relative(logits(model, family), expected) <= 2e-5
    assert relative(logits(model.merge_and_unload(), family), expected) <= 2e-5


@pytest.mark.parametrize("layout", LAYOUTS)
def test_update_equals_the_formula(layout: str) -> None:
    """s B (I + T) A with T cut from sum_l P[l, j] S[l, k] + D by hand."""
    model = get_peft_model(make_model("llama"), config(layout))
    stir(model)
    stack, (name, layer) = stack_of(model), next(iter(layers_of(model).items()))
    role, number = "q", 0
    assert name.endswith("layers.0.self_attn.q_proj")
    full = sum(stack.alignment(role)[slot, number] * stack.slots(role)[slot] for slot in range(3))
    full = full + layer.trilora_D["default"]
    order = stack.scores(role).detach().flatten().argsort(descending=True)
    if layout == "block":
        kept = order[:4].sort().values
        middle = full[kept][:, kept]
    elif layout == "mask":
        kept = torch.zeros(64)
        kept[order[:16]] = 1.0
        middle = full * kept.view(8, 8)
    else:
        middle = full.flatten()[order[:16].sort().values].view(4, 4)
    factor_a, factor_b = layer.trilora_A["default"], layer.trilora_B["default"]
    expected = 2.5 * factor_b @ (torch.eye(len(middle)) + middle) @ factor_a
    torch.testing.assert_close(layer.get_delta_weight("default"), expected)


def test_gradient_of_the_scores_is_straight_through() -> None:
    """In the mask layout dL/dC = dL/dT * T° * sigma'(C), also for entries that are dropped."""
    model = get_peft_model(make_model("llama"), config("mask"))
    stir(model)
    stack, layer = stack_of(model), next(iter(layers_of(model).values()))
    weights = torch.randn(8, 8, generator=torch.Generator().manual_seed(1))
    middle = stack.middle("q", 0, layer.trilora_D["default"])
    (middle * weights).sum().backward()
    full = stack.down("q", 0) + layer.trilora_D["default"]
    soft = torch.sigmoid(stack.scores("q"))
    torch.testing.assert_close(stack.scores("q").grad, weights * full * soft * (1 - soft))
    torch.testing.assert_close(layer.trilora_D["default"].grad, weights * stack.mask("q"))


def test_without_identity_a_fresh_adapter_changes_nothing_and_learns() -> None:
    model = get_peft_model(make_model("llama"), config(identity=False)).eval()
    assert torch.equal(logits(model, "llama"), logits(make_model("llama"), "llama"))
    logits(model, "llama").pow(2).sum().backward()
    for name, layer in layers_of(model).items():
        gradient = layer.trilora_D["default"].grad
        assert gradient is not None and gradient.abs().sum() > 0, name
    stir(model)
    layer = next(iter(layers_of(model).values()))
    middle = stack_of(model).middle("q", 0, layer.trilora_D["default"])
    expected = 2.5 * layer.trilora_B["default"] @ middle @ layer.trilora_A["default"]
    torch.testing.assert_close(layer.get_delta_weight("default"), expected)


def test_without_identity_export_is_exact(tmp_path: Path) -> None:
    model = get_peft_model(make_model("gpt2"), config(identity=False)).eval()
    stir(model)
    export_lora(model, tmp_path)
    plain = PeftModel.from_pretrained(make_model("gpt2"), tmp_path).eval()
    assert relative(logits(plain, "gpt2"), logits(model, "gpt2")) <= 1e-5


def test_state_reloads_strictly() -> None:
    model = get_peft_model(make_model("llama"), config())
    stir(model)
    state = get_peft_model_state_dict(model)
    other = get_peft_model(make_model("llama"), config(seed=5))
    report = set_peft_model_state_dict(other, state)
    assert not report.unexpected_keys
    assert not [key for key in report.missing_keys if "trilora" in key]
    again = get_peft_model_state_dict(other)
    assert again.keys() == state.keys()
    assert all(torch.equal(again[key], state[key]) for key in state)
    other.load_state_dict(model.state_dict(), strict=True)


def test_a_fixed_mask_is_the_one_that_holds() -> None:
    stack = stack_of(get_peft_model(make_model("llama"), config()))
    stack.fix_mask("q", torch.tensor([1, 4, 6, 7]))
    assert stack.selected("q").tolist() == [1, 4, 6, 7]
    assert stack.mask("q").nonzero().unique().tolist() == [1, 4, 6, 7]
    assert stack.selected("k").tolist() == [0, 1, 2, 3]


def test_a_sparser_block_leaves_the_rest_of_the_factors_to_the_identity() -> None:
    model = get_peft_model(make_model("llama"), config(sparsity=0.9))
    stir(model)
    layer = next(iter(layers_of(model).values()))
    core = layer.core("default").detach()
    assert core.shape == (4, 4)
    torch.testing.assert_close(core[3], torch.tensor([0.0, 0.0, 0.0, 1.0]))
    assert int(stack_of(model).mask("q").sum()) == 9


def test_alignment_per_role_gives_each_role_its_own() -> None:
    model = get_peft_model(make_model("llama"), config(alignment_sharing="per_role"))
    stack = stack_of(model)
    assert stack.alignment("q") is not stack.alignment("k")
    assert len(stack.alignment_keys) == 7


@pytest.mark.parametrize("start", ["random", "orthonormal", "shared_seed"])
def test_starts_of_the_factors(start: str) -> None:
    model = get_peft_model(make_model("llama"), config(factor_start=start, shared_seed=3))
    first, second = [
        layer.trilora_A["default"].detach()
        for name, layer in layers_of(model).items()
        if name.endswith("q_proj")
    ]
    assert torch.equal(first, second) == (start == "shared_seed")
    if start == "orthonormal":
        torch.testing.assert_close(first @ first.T, torch.eye(4))
    other = get_peft_model(
        make_model("gemma"), config(factor_start=start, seed=9, shared_seed=3, r=6)
    )
    (third, _) = [
        layer.trilora_A["default"].detach()
        for name, layer in layers_of(other).items()
        if name.endswith("q_proj")
    ]
    assert torch.equal(first, third[:4]) == (start == "shared_seed")


def test_factors_stay_in_single_precision_on_a_half_precision_model() -> None:
    model = get_peft_model(make_model("llama").to(torch.bfloat16), config())
    layer = next(iter(layers_of(model).values()))
    assert layer.trilora_A["default"].dtype == torch.float32
    assert logits(model, "llama").dtype == torch.bfloat16


def test_two_adapters_live_side_by_side() -> None:
    base = make_model("llama")
    untouched = logits(base, "llama")
    model = get_peft_model(base, config()).eval()
    stir(model)
    first = logits(model, "llama")
    model.add_adapter("second", config("mask"))
    assert torch.equal(logits(model, "llama"), first)
    model.set_adapter("second")
    assert torch.equal(logits(model, "llama"), untouched)
    model.set_adapter("default")
    model.delete_adapter("second")
    assert torch.equal(logits(model, "llama"), first)


def test_modules_without_a_role_are_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="lm_head"):
        get_peft_model(make_model("llama"), config(target_modules=["q_proj", "lm_head"]))


def test_some_modules_only(tmp_path: Path) -> None:
    model = get_peft_model(make_model("bert"), config(target_modules=["query", "value"])).eval()
    assert stack_of(model).roles == ("q", "v")
    stir(model)
    export_lora(model, tmp_path)
    plain = PeftModel.from_pretrained(make_model("bert"), tmp_path).eval()
    assert relative(logits(plain, "bert"), logits(model, "bert")) <= 1e-5


def test_rank_above_the_global_rank_is_refused() -> None:
    with pytest.raises(InvalidConfigError, match="lora_rank is 16 but global_rank is 8"):
        get_peft_model(make_model("llama"), config(r=16))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_folding_changes_nothing_but_the_speed(layout: str) -> None:
    model = get_peft_model(make_model("llama"), config(layout)).eval()
    stir(model)
    expected = logits(model, "llama")
    with folded(model):
        assert relative(logits(model, "llama"), expected) <= 1e-5
        with torch.no_grad():
            next(iter(layers_of(model).values())).trilora_D["default"].add_(1.0)
        assert relative(logits(model, "llama"), expected) <= 1e-5
    assert relative(logits(model, "llama"), expected) > 1e-5


def test_export_refuses_other_adapters(tmp_path: Path) -> None:
    model = get_peft_model(make_model("llama"), LoraConfig(target_modules=["q_proj"]))
    with pytest.raises(InvalidConfigError, match="LoraConfig"):
        export_lora(model, tmp_path / "out")


def test_export_refuses_broken_factors(tmp_path: Path) -> None:
    model = get_peft_model(make_model("llama"), config())
    layer = next(iter(layers_of(model).values()))
    with torch.no_grad():
        layer.trilora_B["default"][0, 0] = float("nan")
    with pytest.raises(NonFiniteError, match="lora_B"):
        export_lora(model, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_export_gives_the_same_bytes_twice(tmp_path: Path) -> None:
    model = get_peft_model(make_model("llama"), config())
    stir(model)
    folders = [export_lora(model, tmp_path / name) for name in ("one", "two")]
    files = [sorted(path.name for path in folder.iterdir()) for folder in folders]
    assert files[0] == files[1] == ["adapter_config.json", "adapter_model.safetensors"]
    for name in files[0]:
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes()


def test_adapter_covers_every_role() -> None:
    base = make_model("llama")
    names = {module.name for module in adapted_modules(base)}
    assert set(layers_of(get_peft_model(base, config()))) == names
