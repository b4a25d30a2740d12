"""Merged weights say what base model and adapter say together, in every family."""

import json
import zipfile
from pathlib import Path

import pytest
import torch
from peft import VeraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
)
from typer.testing import CliRunner

from backend.contracts.base_models import BaseModelRef
from tests.worker.federated.tiny import (
    IMAGE_FAMILIES,
    MODELS,
    make_inputs,
    make_model,
    make_tokenizer,
)
from worker.federated.adapters import TriLoraConfig, export_lora
from worker.federated.adapters.merging import merge_adapter
from worker.federated.errors import InvalidConfigError
from worker.federated.objectives.classification import HeadObjective, TextInputs
from worker.federated.tasks.images import ImageInputs, Preprocessing
from worker.merge import app

HEADED = ("bert", "roberta", "distilbert", *IMAGE_FAMILIES)


def saved_base(family: str, folder: Path, **changes: int) -> BaseModelRef:
    model = make_model(family, **changes)
    model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return BaseModelRef(source="folder", id=str(folder))


@torch.no_grad()
def delivered(family: str, folder: Path) -> torch.Tensor:
    """Writes a stirred TriLoRA adapter, head included; gives the logits of the adapted model."""
    base = make_model(family)
    if family in HEADED:
        inputs = (
            ImageInputs(Preprocessing(16, 8))
            if family in IMAGE_FAMILIES
            else TextInputs(make_tokenizer(), 32)
        )
        objective = HeadObjective(base, inputs, ("no", "yes"))
    config = TriLoraConfig(r=4, global_rank=8, num_slots=3, lora_alpha=10.0)
    model = get_peft_model(base, config).eval()
    source = torch.Generator().manual_seed(7)
    for name, parameter in model.named_parameters():
        if "trilora_" in name or (family in HEADED and "classifier" in name):
            parameter += 0.2 * torch.randn(parameter.shape, generator=source)
    export_lora(model, folder)
    if family in HEADED:
        objective.save_head(folder)
    logits: torch.Tensor = model(**make_inputs(family)).logits
    return logits


@pytest.mark.parametrize("family", MODELS)
def test_logits_are_those_of_base_and_adapter(family: str, tmp_path: Path) -> None:
    ref = saved_base(family, tmp_path / "base")
    expected = delivered(family, tmp_path / "adapter")
    merge_adapter(ref, tmp_path / "adapter", tmp_path / "merged")
    kind = AutoModelForCausalLM
    if family in HEADED:
        images = family in IMAGE_FAMILIES
        kind = AutoModelForImageClassification if images else AutoModelForSequenceClassification
    merged = kind.from_pretrained(tmp_path / "merged").eval()
    with torch.no_grad():
        logits = merged(**make_inputs(family)).logits
        untouched = make_model(family)(**make_inputs(family)).logits
    assert float((logits - expected).norm() / expected.norm()) <= 1e-5
    assert float((logits - untouched).norm() / untouched.norm()) > 1e-3
    assert not list((tmp_path / "merged").glob("*.bin"))
    if family in HEADED:
        assert merged.config.id2label == {0: "no", 1: "yes"}
    if family not in IMAGE_FAMILIES:
        written = (tmp_path / "merged" / "tokenizer.json").read_bytes()
        assert written == (tmp_path / "base" / "tokenizer.json").read_bytes()


def test_a_downloaded_archive_and_a_precision(tmp_path: Path) -> None:
    saved_base("llama", tmp_path / "base")
    delivered("llama", tmp_path / "adapter")
    config = tmp_path / "adapter" / "adapter_config.json"
    named = {**json.loads(config.read_text()), "base_model_name_or_path": "somewhere-else"}
    config.write_text(json.dumps(named))
    with zipfile.ZipFile(tmp_path / "adapter.zip", "w") as archive:
        for path in (tmp_path / "adapter").iterdir():
            archive.write(path, path.name)
        archive.writestr("../escape.txt", "never written")
    arguments = [str(tmp_path / "adapter.zip"), "--model", str(tmp_path / "base")]
    arguments += ["--output", str(tmp_path / "merged"), "--precision", "bf16"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    weights = load_file(tmp_path / "merged" / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}
    assert not (tmp_path / "escape.txt").exists()
    again = CliRunner().invoke(app, arguments)
    assert (again.exit_code, "holds something" in again.output) == (1, True)


def test_an_adapter_of_another_model_is_refused(tmp_path: Path) -> None:
    delivered("llama", tmp_path / "adapter")
    for name, changes in (("wide", {"width": 48}), ("deep", {"num_layers": 3})):
        ref = saved_base("llama", tmp_path / name, **changes)
        with pytest.raises(InvalidConfigError, match="does not fit base model"):
            merge_adapter(ref, tmp_path / "adapter", tmp_path / "merged")
    other = saved_base("gpt2", tmp_path / "gpt2")
    with pytest.raises(InvalidConfigError, match="does not fit base model"):
        merge_adapter(other, tmp_path / "adapter", tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_what_is_no_plain_adapter_is_refused(tmp_path: Path) -> None:
    ref = saved_base("llama", tmp_path / "base")
    (tmp_path / "file").write_text("no archive")
    with pytest.raises(InvalidConfigError, match="neither a folder nor an archive"):
        merge_adapter(ref, tmp_path / "file", tmp_path / "merged")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InvalidConfigError, match=r"has no adapter_config\.json"):
        merge_adapter(ref, tmp_path / "empty", tmp_path / "merged")
    delivered("llama", tmp_path / "adapter")
    config = VeraConfig(r=4, target_modules=["q_proj"]).to_dict()
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(config, default=list))
    with pytest.raises(InvalidConfigError, match="only plain LoRA"):
        merge_adapter(ref, tmp_path / "adapter", tmp_path / "merged")
