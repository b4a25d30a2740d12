"""What only a CUDA device can show; each test says why it was skipped elsewhere."""

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from peft import get_peft_model

from backend.contracts.base_models import BaseModelRef
from backend.contracts.params.h2tune import H2TuneParams
from tests.worker.federated.strategies.rounds import at_work, federation_of, plans_of, training
from tests.worker.federated.tiny import make_client, make_inputs, make_model, make_tokenizer
from worker.federated.adapters import TriLoraConfig
from worker.federated.base_models import load_base_model
from worker.federated.strategies.registry import build_strategy

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
needs_bitsandbytes = pytest.mark.skipif(
    find_spec("bitsandbytes") is None, reason="needs the package bitsandbytes"
)
needs_two = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
GPU = torch.device("cuda", 0)


@pytest.fixture
def checkpoint(tmp_path: Path) -> BaseModelRef:
    make_model("llama", num_layers=4, width=64).save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    return BaseModelRef(source="folder", id=str(tmp_path))


@pytest.mark.parametrize("checkpointing", ["off", "on"])
def test_a_round_on_the_gpu_agrees_with_the_cpu(checkpointing: str) -> None:
    config = training(precision="fp32", gradient_checkpointing=checkpointing)
    member, strategy = make_client("a"), build_strategy(H2TuneParams())
    state = strategy.init_state(federation_of([member]), 0)
    plan = plans_of(strategy, state, [member], 1)["a"]
    updates = []
    for device in (torch.device("cpu"), GPU):
        client = at_work(member, config)
        client.model.to(device)
        updates.append(strategy.train_client(plan, client))
    for name, tensor in updates[0].shared.items():
        if tensor.is_floating_point():
            torch.testing.assert_close(updates[1].shared[name], tensor, atol=1e-3, rtol=1e-2)


def test_recomputing_needs_less_memory() -> None:
    peaks = []
    for choice in ("off", "on"):
        member, strategy = (
            make_client("a", num_layers=12, width=256),
            build_strategy(H2TuneParams()),
        )
        state = strategy.init_state(federation_of([member]), 0)
        plan = plans_of(strategy, state, [member], 1)["a"]
        client = at_work(member, training(batch_size=16, gradient_checkpointing=choice))
        client.model.to(GPU)
        torch.cuda.reset_peak_memory_stats()
        strategy.train_client(plan, client)
        peaks.append(torch.cuda.max_memory_allocated())
    assert peaks[1] < peaks[0]


@needs_bitsandbytes
def test_four_bit_weights_take_less_memory_and_train(checkpoint: BaseModelRef) -> None:
    whole, _ = load_base_model(checkpoint, device=GPU, dtype=torch.bfloat16)
    packed, _ = load_base_model(checkpoint, device=GPU, dtype=torch.bfloat16, quantization="nf4")
    assert packed.get_memory_footprint() < whole.get_memory_footprint()
    adapted = get_peft_model(packed, TriLoraConfig(r=4, global_rank=8))
    inputs = {name: tensor.to(GPU) for name, tensor in make_inputs("llama").items()}
    adapted(**inputs).logits.float().pow(2).sum().backward()
    gradients = [p.grad for n, p in adapted.named_parameters() if "trilora_B" in n]
    assert gradients and all(float(g.abs().sum()) > 0 for g in gradients)


@needs_two
def test_one_model_on_several_gpus_computes_as_on_one(checkpoint: BaseModelRef) -> None:
    inputs = {name: tensor.to(GPU) for name, tensor in make_inputs("llama").items()}
    results = []
    for device_map in ("none", "auto"):
        model, _ = load_base_model(
            checkpoint, device=GPU, dtype=torch.float32, device_map=device_map
        )
        adapted = get_peft_model(model, TriLoraConfig(r=4, global_rank=8))
        results.append(adapted(**inputs).logits.detach())
    torch.testing.assert_close(results[0], results[1].to(GPU), atol=1e-4, rtol=1e-4)
