"""Writing codes by their effect: factors move what a model finally says, as far in every model."""

from collections.abc import Iterator
from functools import partial

import pytest
import torch
from transformers import PreTrainedModel

from backend.contracts.params.h2tune import H2TuneParams
from backend.contracts.training import TrainingConfig
from tests.worker.federated.tiny import make_client, make_model, make_tokenizer
from worker.federated.effect import EFFECT_UNITS, effect_factors, effects, summaries
from worker.federated.gauge import reading_factor, reference_codes
from worker.federated.objectives.encoder import embed_texts
from worker.federated.probes import ProbeBatch, probe_batches
from worker.federated.roles import adapted_modules
from worker.federated.simulation import simulate

_WORDS = ("the", "film", "was", "good", "bad", "a", "happy", "sad", "story")
TEXTS = tuple(f"{one} {two}" for one in _WORDS for two in _WORDS)
CODES = 3
TEXT_FAMILIES = ("bert", "distilbert", "roberta", "llama", "gemma2", "qwen3", "gpt2", "phi3")
"""With smooth activations: a finite difference would step over the kinks of OPT's ReLU."""


def read(texts: tuple[str, ...] = TEXTS) -> Iterator[ProbeBatch]:
    return probe_batches(make_tokenizer(), texts, "text", max_length=16)


def lively(family: str, **shape: int) -> PreTrainedModel:
    """With weights so large that shifting one layer changes what the next ones make of it."""
    model = make_model(family, **shape)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim == 2 and "embed" not in name:
                weight.mul_(4)
    return model


def _shifted_by(
    shift: torch.Tensor, module: torch.nn.Module, given: object, output: torch.Tensor
) -> torch.Tensor:
    return output + shift


def test_a_summary_is_the_embedding_that_encoders_classify_by() -> None:
    model = lively("bert").base_model
    embedded = embed_texts(model, make_tokenizer(), list(TEXTS), 16)
    torch.testing.assert_close(summaries(model, read()), embedded, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", TEXT_FAMILIES)
def test_an_effect_is_what_shifting_an_output_does_to_the_codes(family: str) -> None:
    model = lively(family).double()
    texts = TEXTS[:12]
    reader = torch.randn(
        CODES, model.config.hidden_size, generator=torch.Generator().manual_seed(1)
    )
    found = effects(model, read(texts), reader)
    assert list(found) == [module.name for module in adapted_modules(model)]
    for module in adapted_modules(model)[::3]:
        direction = torch.randn(
            module.out_features, generator=torch.Generator().manual_seed(2), dtype=torch.float64
        )
        means = []
        for step in (1e-3, -1e-3):  # a central difference of whole forward passes
            handle = model.get_submodule(module.name).register_forward_hook(
                partial(_shifted_by, step * direction)
            )
            means.append((summaries(model, read(texts)) @ reader.T).mean(dim=0))
            handle.remove()
        expected = (means[0] - means[1]) / 2e-3
        predicted = found[module.name] @ direction.float()
        torch.testing.assert_close(predicted, expected, atol=2e-3, rtol=2e-2)


def test_only_the_first_units_are_read() -> None:
    model, reader = make_model("bert"), torch.eye(CODES, 32)
    many = TEXTS * 4
    assert len(many) > EFFECT_UNITS + 32
    batches = list(read(many))
    whole = effects(model, iter(batches[: EFFECT_UNITS // 32]), reader)
    capped = effects(model, iter(batches), reader)
    assert all(torch.equal(whole[name], capped[name]) for name in whole)


@pytest.mark.parametrize(("family", "width", "num_layers"), [("bert", 32, 2), ("llama", 48, 3)])
def test_one_unit_everywhere_moves_every_code_by_one_in_the_mean(
    family: str, width: int, num_layers: int
) -> None:
    model = lively(family, width=width, num_layers=num_layers)
    codes = reference_codes(summaries(model, read()), CODES)
    factors = effect_factors(model, partial(read), codes)
    reader = reading_factor(summaries(model, read()), codes)
    found = effects(model, read(), reader)
    moved = sum(float(torch.trace(found[n] @ f.out_factor)) for n, f in factors.items())
    assert moved == pytest.approx(CODES, rel=1e-4)
    for module in adapted_modules(model):
        assert factors[module.name].in_factor.shape == (CODES, module.in_features)
        assert factors[module.name].out_factor.shape == (module.out_features, CODES)


def test_clients_of_two_families_share_and_agree_on_codes_by_one_matrix_each() -> None:
    clients = [
        make_client("a", "llama", rank=4),
        make_client("b", "gemma", num_layers=3, width=48, rank=2, seed=1),
    ]
    params = H2TuneParams(gauge="probe", codes="exchange", writing="effect")
    training = TrainingConfig(local_steps=2, batch_size=4, max_length=48)
    result = simulate(
        params,
        clients,
        num_rounds=2,
        training=training,
        global_rank=4,
        seed=0,
        probes=TEXTS,
    )
    codes = result.state.tensors["codes"]
    assert codes.shape == (len(TEXTS), 4)
    assert not [name for name in result.state.tensors if name.startswith("codes/")]
    moved = [t for name, t in result.state.tensors.items() if name.startswith("slots/")]
    assert any(float(matrix.abs().max()) > 1e-3 for matrix in moved)
    for client in clients:
        expected = effect_factors(client.model, partial(read), codes)
        for module, factors in expected.items():
            held = result.private[client.client_id][f"factors/B/{module}"]
            torch.testing.assert_close(held, factors.out_factor[:, : client.lora_rank])
