"""The probe gauge: codes mean the same in models that have nothing else in common."""

import numpy as np
import pytest
import torch

from tests.worker.federated.tiny import IMAGE_FAMILIES, MODELS, make_inputs, make_model
from worker.federated.errors import InvalidConfigError
from worker.federated.gauge import (
    Activations,
    agreed_codes,
    agreement,
    gauged_factors,
    probe_scores,
    record,
    reference_codes,
    shared_variance,
)
from worker.federated.probes import ProbeBatch
from worker.federated.roles import adapted_modules

UNITS, CODES = 80, 3


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def rotation(width: int, seed: int = 1) -> torch.Tensor:
    return torch.linalg.qr(draw(width, width, seed=seed)).Q


def joint_codes(scores: list[torch.Tensor], num_codes: int) -> torch.Tensor:
    """As a server finds them, that gets one sum from each model."""
    return agreed_codes(sum((agreement([score]) for score in scores), torch.zeros(())), num_codes)


def views(meaning: torch.Tensor, *widths: int) -> list[torch.Tensor]:
    """What models of different widths make of the same units: rotated meaning, offset, noise."""
    return [
        3 * meaning @ draw(meaning.shape[1], width, seed=10 + width)
        + draw(width, seed=20 + width)
        + 0.05 * draw(len(meaning), width, seed=30 + width)
        for width in widths
    ]


def test_codes_are_what_the_models_share() -> None:
    meaning = draw(UNITS, CODES)
    scores = [probe_scores(view, 6) for view in views(meaning, 12, 20, 16)]
    codes = joint_codes(scores, CODES)
    centred = meaning - meaning.mean(dim=0)
    projector = torch.linalg.qr(codes).Q
    assert torch.allclose(projector @ (projector.T @ centred), centred, atol=0.15)
    assert all(shared_variance(codes, score) > 0.95 for score in scores)
    unrelated = probe_scores(draw(UNITS, 12, seed=99), 6)
    assert shared_variance(codes, unrelated) < 0.3


def test_codes_are_the_left_singular_vectors_of_all_scores_side_by_side() -> None:
    scores = [probe_scores(view, 6) for view in views(draw(UNITS, CODES), 12, 20, 16)]
    left, values, _ = np.linalg.svd(np.concatenate([s.double().numpy() for s in scores], axis=1))
    assert values[CODES - 1] - values[CODES] > 0.1  # so that the first ones are well determined
    found = joint_codes(scores, CODES).double().numpy() / UNITS**0.5
    cosines = np.abs(np.einsum("nc,nc->c", left[:, :CODES], found))
    assert cosines == pytest.approx(1.0, abs=1e-5)


def test_codes_are_standardised() -> None:
    codes = joint_codes([probe_scores(v, 6) for v in views(draw(UNITS, CODES), 12, 20)], CODES)
    assert torch.allclose(codes.mean(dim=0), torch.zeros(CODES), atol=1e-5)
    assert torch.allclose(codes.T @ codes / UNITS, torch.eye(CODES), atol=1e-5)


def test_a_rotation_of_a_hidden_space_changes_no_code_and_turns_the_factors_along() -> None:
    first, second = views(draw(UNITS, CODES), 12, 20)
    turn = rotation(12)
    plain = joint_codes([probe_scores(first, 6), probe_scores(second, 6)], CODES)
    turned = joint_codes([probe_scores(first @ turn, 6), probe_scores(second, 6)], CODES)
    assert torch.allclose(plain, turned, atol=1e-2)  # neighbouring codes are hard to tell apart

    before = gauged_factors(Activations(first, second), plain, plain)
    after = gauged_factors(Activations(first @ turn, second), plain, plain)
    assert torch.allclose(after.in_factor, before.in_factor @ turn, atol=1e-5)
    assert torch.equal(after.out_factor, before.out_factor)


def test_the_order_of_clients_does_not_matter() -> None:
    scores = [probe_scores(view, 6) for view in views(draw(UNITS, CODES), 12, 20, 16)]
    assert torch.allclose(joint_codes(scores, CODES), joint_codes(scores[::-1], CODES), atol=1e-4)


def test_factors_read_and_write_the_codes() -> None:
    inputs, outputs = views(draw(UNITS, CODES), 12, 20)
    codes = reference_codes(inputs, CODES)
    factors = gauged_factors(Activations(inputs, outputs), codes, codes, ridge=1e-6)
    read = (inputs - inputs.mean(dim=0)) @ factors.in_factor.T
    for code in range(CODES):
        assert torch.corrcoef(torch.stack([read[:, code], codes[:, code]]))[0, 1] > 0.9
    # One unit of a code moves the output as far as it does in the probes themselves.
    slope = torch.linalg.lstsq(codes, outputs - outputs.mean(dim=0)).solution
    assert torch.allclose(factors.out_factor, slope.T, atol=1e-4)


def test_the_update_adds_no_constant() -> None:
    inputs, outputs = views(draw(UNITS, CODES), 12, 20)
    codes = reference_codes(inputs, CODES)
    factor = gauged_factors(Activations(inputs, outputs), codes, codes).in_factor
    assert torch.allclose(factor @ inputs.mean(dim=0), torch.zeros(CODES), atol=1e-5)


def test_too_few_probes_are_refused() -> None:
    with pytest.raises(InvalidConfigError, match="global_rank is 8"):
        reference_codes(draw(5, 30), 8)
    with pytest.raises(InvalidConfigError, match="add probe texts"):
        joint_codes([probe_scores(draw(5, 30), 4)], 8)


@pytest.mark.parametrize("family", MODELS)
def test_every_family_can_be_gauged(family: str) -> None:
    model = make_model(family)
    inputs = make_inputs(family)
    length = 5 if family in IMAGE_FAMILIES else 7  # four patches and the class token
    if family == "deit":
        length = 6  # and the distillation token
    pooling = torch.kron(torch.eye(2), torch.full((1, length), 1 / length))
    seen = record(model, [ProbeBatch(inputs, pooling), ProbeBatch(inputs, pooling)])
    assert list(seen) == [module.name for module in adapted_modules(model)]
    for module in adapted_modules(model):
        found = seen[module.name]
        assert found.inputs.shape == (4, module.in_features)
        assert found.outputs.shape == (4, module.out_features)
        assert torch.equal(found.inputs[:2], found.inputs[2:])
        linear = model.get_submodule(module.name)
        assert torch.allclose(linear(found.inputs), found.outputs, atol=1e-5)  # means commute
