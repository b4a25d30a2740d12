"""Less memory on purpose, and clear words when it is full."""

import copy

import pytest
import torch

from backend.contracts.params.h2tune import H2TuneParams
from backend.contracts.params.lora import LocalOnlyParams
from backend.contracts.strategies import Params
from tests.worker.federated.strategies.rounds import at_work, federation_of, plans_of, training
from tests.worker.federated.tiny import MODELS, make_client, make_inputs, make_model
from worker.federated.errors import OutOfMemoryError, UnsupportedModelError
from worker.federated.memory import (
    explained_memory,
    peak_memory_bytes,
    recomputed_activations,
    smaller_settings,
)
from worker.federated.roles import adapted_modules
from worker.federated.strategies.registry import build_strategy
from worker.federated.types import ClientUpdate


def one_round(params: Params, family: str, **changes: object) -> ClientUpdate:
    member, config = make_client("a", family), training(lora_dropout=0.2, **changes)
    strategy = build_strategy(params)
    state = strategy.init_state(federation_of([member]), 0)
    plan = plans_of(strategy, state, [member], 1)["a"]
    return strategy.train_client(plan, at_work(member, config))


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize(
    "params",
    [LocalOnlyParams(), H2TuneParams(gauge="none", joint_rounds=0, distillation_weight=1.0)],
)
def test_recomputing_changes_no_number(params: Params, family: str) -> None:
    """With a frozen base, dropout, and (H2Tune) a teacher that runs in between."""
    kept = one_round(params, family, gradient_checkpointing="off")
    recomputed = one_round(params, family, gradient_checkpointing="on")
    for name, tensor in kept.private.items():
        torch.testing.assert_close(recomputed.private[name], tensor, atol=1e-6, rtol=1e-5)
    factors = [name for name in kept.private if name.startswith("factors/B")]
    assert any(kept.private[name].abs().sum() > 0 for name in factors)


@pytest.mark.parametrize("family", MODELS)
def test_layers_run_again_in_the_backward_pass_of_training_only(family: str) -> None:
    model, calls = make_model(family), []
    inner = model.get_submodule(adapted_modules(model)[0].name)
    inner.register_forward_hook(lambda *_: calls.append(1))

    def runs() -> int:
        calls.clear()
        model(**make_inputs(family)).logits.sum().backward()
        return len(calls)

    with recomputed_activations(model, training(gradient_checkpointing="on")):
        assert runs() == 1, "evaluation"
        model.train()
        assert runs() == 2
    assert runs() == 1


def test_auto_leaves_small_models_alone_and_on_refuses_what_cannot() -> None:
    model = make_model("llama")
    with recomputed_activations(model, training(gradient_checkpointing="auto")):
        assert not model.is_gradient_checkpointing
    model.supports_gradient_checkpointing = False
    refused = pytest.raises(UnsupportedModelError, match=r"gradient_checkpointing to 'off'")
    with refused, recomputed_activations(model, training(gradient_checkpointing="on")):
        raise AssertionError("never reached")


def test_a_full_device_names_smaller_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object, **kwargs: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")

    client = make_client("a")
    monkeypatch.setattr(type(client.model), "forward", full)
    strategy, config = build_strategy(LocalOnlyParams()), training(batch_size=6)
    plan = plans_of(strategy, strategy.init_state(federation_of([client]), 0), [client], 1)["a"]
    with pytest.raises(
        OutOfMemoryError,
        match=r"batch_size 3 with gradient_accumulation_steps 2 \(now 6 with 1\); "
        r"gradient_checkpointing 'on'",
    ) as caught:
        strategy.train_client(plan, at_work(client, config))
    assert isinstance(caught.value.__cause__, torch.OutOfMemoryError)


def test_advice_keeps_to_what_is_left() -> None:
    least = training(batch_size=1, gradient_checkpointing="on", max_length=100, quantization="nf4")
    assert smaller_settings(least) == ["a smaller base model"]
    long = training(batch_size=1, gradient_checkpointing="on", max_length=200)
    assert smaller_settings(long)[0] == "max_length 128 (now 200)"


def test_other_errors_pass_through() -> None:
    with pytest.raises(RuntimeError, match="something else"), explained_memory(training()):
        raise RuntimeError("something else")


def test_memory_in_use_is_counted_in_bytes() -> None:
    before = peak_memory_bytes(torch.device("cpu"))
    block = copy.deepcopy(torch.ones(2**24))  # 64 MiB
    assert peak_memory_bytes(torch.device("cpu")) >= max(before, block.nbytes)
