import json

import huggingface_hub.constants
import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from backend.contracts.base_models import IMAGE_MODELS, BaseModelRef, BuiltinModelName
from worker.federated.base_models import (
    builtin_model_folder,
    inspect_base_model,
    load_base_model,
)
from worker.federated.errors import InvalidConfigError, UnsupportedModelError

CPU = torch.device("cpu")


def load(source, name, dtype=torch.float32):
    return load_base_model(BaseModelRef(source=source, id=str(name)), device=CPU, dtype=dtype)


@pytest.fixture
def checkpoint(tmp_path):
    """A folder with a small untrained model and a tokenizer."""
    _, tokenizer = load("builtin", "tiny_llama")
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    return tmp_path


def test_loaded_folder_gives_the_stored_weights_in_the_wanted_type(checkpoint):
    model, tokenizer = load("folder", checkpoint)
    half, _ = load("folder", checkpoint, torch.bfloat16)
    assert not model.training
    assert model.dtype == torch.float32
    assert half.dtype == torch.bfloat16
    ids = tokenizer("Tom has 3 apples.", return_tensors="pt").input_ids
    expected = LlamaForCausalLM.from_pretrained(checkpoint)(ids).logits
    assert torch.equal(model(ids).logits, expected)


def test_every_call_gives_a_module_of_its_own(checkpoint):
    first, _ = load("folder", checkpoint)
    with torch.no_grad():
        for parameter in first.parameters():
            parameter.zero_()
    second, _ = load("folder", checkpoint)
    assert any(parameter.abs().sum() > 0 for parameter in second.parameters())


@pytest.mark.parametrize("name", sorted(set(BuiltinModelName) - IMAGE_MODELS))
def test_inspection_agrees_with_the_loaded_model(name):
    architecture, shapes = inspect_base_model(BaseModelRef(source="builtin", id=name))
    model, _ = load("builtin", name)
    assert architecture.num_layers == len(model.model.layers)
    assert architecture.hidden_size == model.get_input_embeddings().embedding_dim
    for layer in model.model.layers:
        attention, mlp = layer.self_attn, layer.mlp
        modules = {
            "q": attention.q_proj,
            "k": attention.k_proj,
            "v": attention.v_proj,
            "o": attention.o_proj,
            "gate": mlp.gate_proj,
            "up": mlp.up_proj,
            "down": mlp.down_proj,
        }
        assert {
            role: (shape.out_features, shape.in_features) for role, shape in shapes.items()
        } == {role: tuple(module.weight.shape) for role, module in modules.items()}


def test_inspection_reads_no_weights(checkpoint):
    (checkpoint / "model.safetensors").write_bytes(b"not a tensor")
    architecture, shapes = inspect_base_model(BaseModelRef(source="folder", id=str(checkpoint)))
    assert (architecture.family, architecture.num_layers) == ("llama", 2)
    assert shapes["down"].in_features == 24


@pytest.mark.parametrize(
    ("missing", "says"),
    [
        ("config.json", "has no config.json"),
        ("model.safetensors", "no weights.*safetensors"),
        ("tokenizer.json", "has no tokenizer"),
    ],
)
def test_incomplete_folder_is_named_with_the_remedy(checkpoint, missing, says):
    (checkpoint / missing).unlink()
    with pytest.raises(InvalidConfigError, match=rf"{checkpoint.name}.*{says}"):
        load("folder", checkpoint)


def test_missing_folder_is_named(tmp_path):
    with pytest.raises(InvalidConfigError, match=r"'.*absent' does not exist"):
        load("folder", tmp_path / "absent")


def test_pickled_weights_are_refused(checkpoint):
    (checkpoint / "model.safetensors").rename(checkpoint / "pytorch_model.bin")
    with pytest.raises(InvalidConfigError, match=r"pytorch_model\.bin, a pickle"):
        load("folder", checkpoint)


def test_weights_that_do_not_fill_the_architecture_are_refused(checkpoint):
    config = json.loads((checkpoint / "config.json").read_text())
    config["num_hidden_layers"] = 3
    (checkpoint / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedModelError, match="lacks weights"):
        load("folder", checkpoint)


def test_tokenizer_with_more_tokens_than_the_model_is_refused(checkpoint):
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    tokenizer.add_tokens(["<new>"])
    tokenizer.save_pretrained(checkpoint)
    with pytest.raises(UnsupportedModelError, match="833 tokens, its weights know 832"):
        load("folder", checkpoint)


def test_model_that_brings_its_own_code_is_refused(checkpoint):
    config = json.loads((checkpoint / "config.json").read_text())
    config |= {
        "model_type": "exotic",
        "auto_map": {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"},
    }
    (checkpoint / "config.json").write_text(json.dumps(config))
    (checkpoint / "code.py").write_text("raise SystemExit('ran')")
    for call in (
        load,
        lambda source, name: inspect_base_model(BaseModelRef(source=source, id=name)),
    ):
        with pytest.raises(UnsupportedModelError, match="ships with transformers"):
            call("folder", str(checkpoint))


def test_unknown_builtin_model_lists_the_known_ones():
    with pytest.raises(InvalidConfigError, match=r"'huge'.*tiny_llama, tiny_gemma"):
        load("builtin", "huge")


def test_unreachable_hub_says_what_to_do(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    ref = BaseModelRef(source="hub", id="nobody/no-such-model")
    with pytest.raises(InvalidConfigError, match=r"no-such-model.*HF_TOKEN"):
        load_base_model(ref, device=CPU, dtype=torch.float32)
    with pytest.raises(InvalidConfigError, match=r"no-such-model.*HF_TOKEN"):
        inspect_base_model(ref)


def test_builtin_folders_exist():
    assert all(builtin_model_folder(name).is_dir() for name in BuiltinModelName)
