"""What a CPU can tell about 4-bit weights and several GPUs; the rest is in tests/gpu."""

import copy

import pytest
import torch
from peft import get_peft_model
from torch import nn

from tests.worker.federated.tiny import make_inputs, make_model
from worker.federated import placement
from worker.federated.adapters import TriLoraConfig, TriLoraLinear
from worker.federated.errors import InvalidConfigError, UnsupportedModelError
from worker.federated.placement import Placement

CPU, GPU = torch.device("cpu"), torch.device("cuda")


class PackedLinear(nn.Linear):
    """Stores its weight as bytes in another shape, as bitsandbytes' 4-bit layers do."""

    def __init__(self, source: nn.Linear) -> None:
        super().__init__(source.in_features, source.out_features, bias=source.bias is not None)
        self.bias = source.bias
        self.scale = float(source.weight.detach().abs().max()) / 127
        codes = (source.weight.detach() / self.scale).round().to(torch.int8)
        self.weight = nn.Parameter(codes.view(torch.uint8).view(-1, 1), requires_grad=False)

    def unpacked(self) -> torch.Tensor:
        codes = self.weight.data.view(torch.int8).view(self.out_features, self.in_features)
        return codes.float() * self.scale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(x, self.unpacked(), self.bias)


def test_trilora_on_packed_weights_computes_as_on_their_values() -> None:
    packed = make_model("llama")
    plain = copy.deepcopy(packed)
    for layer, twin in zip(packed.model.layers, plain.model.layers, strict=True):
        layer.self_attn.q_proj = PackedLinear(layer.self_attn.q_proj)
        twin.self_attn.q_proj.weight.data = layer.self_attn.q_proj.unpacked()
    config = TriLoraConfig(r=4, global_rank=8, target_modules=["q_proj"])
    models = [get_peft_model(model, copy.deepcopy(config)) for model in (packed, plain)]
    source = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for one, two in zip(*(m.named_parameters() for m in models), strict=True):
            if "trilora_B" in one[0]:
                one[1].copy_(torch.randn(one[1].shape, generator=source))
                two[1].copy_(one[1])
    results = [model(**make_inputs("llama")).logits for model in models]
    torch.testing.assert_close(*results)
    results[0].sum().backward()
    layers = [m for m in models[0].modules() if isinstance(m, TriLoraLinear)]
    assert all(layer.trilora_A["default"].grad.abs().sum() > 0 for layer in layers)
    with pytest.raises(UnsupportedModelError, match="merged into quantised weights"):
        models[0].merge_adapter()


def test_four_bits_without_a_gpu_are_refused() -> None:
    with pytest.raises(InvalidConfigError, match="'nf4' but training runs on 'cpu'"):
        Placement(CPU, torch.float32, quantization="nf4").load_options()


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement, "find_spec", lambda name: None)
    with pytest.raises(InvalidConfigError, match=r"'nf4' needs.*pip install bitsandbytes"):
        Placement(GPU, torch.bfloat16, quantization="nf4").load_options()


def test_one_device_needs_no_map() -> None:
    assert Placement(CPU, torch.float32, device_map="auto").load_options() == {
        "dtype": torch.float32
    }


def test_four_bits_are_asked_for_as_documented(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement, "find_spec", lambda name: object())
    options = Placement(GPU, torch.bfloat16, quantization="nf4").load_options()
    assert options["device_map"] == {"": GPU}
    quantised = options["quantization_config"]
    assert quantised.load_in_4bit
    assert quantised.bnb_4bit_quant_type == "nf4"
    assert quantised.bnb_4bit_compute_dtype == torch.bfloat16


def test_several_gpus_are_used_when_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement, "find_spec", lambda name: object())
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert Placement(GPU, torch.bfloat16, device_map="auto").load_options()["device_map"] == "auto"
    assert "device_map" not in Placement(GPU, torch.bfloat16).load_options()
