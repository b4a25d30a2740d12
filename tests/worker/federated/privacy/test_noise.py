import math

import numpy as np
import pytest
import torch

from backend.contracts.privacy import DifferentialPrivacy
from worker.federated.privacy.keystream import gaussian
from worker.federated.privacy.noise import release

KEY = bytes(range(32))
NO_NOISE = 1e-12


def settings(noise: float, clip_norm: float) -> DifferentialPrivacy:
    return DifferentialPrivacy(noise_multiplier=noise, clip_norm=clip_norm)


def test_all_tensors_are_clipped_together() -> None:
    received = {"a": torch.tensor([1.0, 1.0]), "b": torch.zeros(1, 1)}
    values = {"a": torch.tensor([3.0, 2.0]), "b": torch.full((1, 1), -2.0)}  # change (2, 1), (-2)
    released = release(values, received, settings(NO_NOISE, 1.5), KEY)
    assert released.change_norm == 3.0  # sqrt(4 + 1 + 4)
    assert released.tensors["a"].tolist() == pytest.approx([2.0, 1.5])
    assert released.tensors["b"].tolist() == [[pytest.approx(-1.0)]]


def test_a_small_change_stays_as_it_is() -> None:
    received, values = {"a": torch.ones(3)}, {"a": torch.tensor([1.1, 1.0, 0.9])}
    released = release(values, received, settings(NO_NOISE, 1.0), KEY)
    assert torch.allclose(released.tensors["a"], values["a"], atol=1e-7)


def test_noise_is_added_to_every_value_in_order_of_names() -> None:
    received = {"b": torch.zeros(2, 2), "a": torch.ones(3)}
    values = {name: tensor.clone() for name, tensor in received.items()}
    released = release(values, received, settings(2.0, 0.5), KEY)
    noise = gaussian(KEY, 7).numpy()  # standard deviation 2 x 0.5 = 1
    assert np.allclose(released.tensors["a"].numpy(), 1 + noise[:3], atol=1e-6)
    assert np.allclose(released.tensors["b"].numpy().ravel(), noise[3:], atol=1e-6)


def test_the_noise_has_the_promised_deviation() -> None:
    zeros = {"a": torch.zeros(200, 200)}
    released = release(zeros, zeros, settings(1.5, 0.2), KEY)
    count = 40_000
    measured = float(released.tensors["a"].double().std())
    assert measured == pytest.approx(0.3, rel=4 / math.sqrt(2 * count))


def test_the_dtype_stays() -> None:
    half = {"a": torch.ones(4, dtype=torch.bfloat16)}
    assert release(half, half, settings(1, 1), KEY).tensors["a"].dtype == torch.bfloat16


def test_replacing_all_data_moves_a_release_by_at_most_two_norms() -> None:
    zero = {"a": torch.zeros(50)}
    one, other = (torch.full((50,), sign * 1e6) for sign in (1.0, -1.0))
    ends = [release({"a": x}, zero, settings(1.0, 0.7), KEY).tensors["a"] for x in (one, other)]
    assert float((ends[0] - ends[1]).norm()) == pytest.approx(2 * 0.7, rel=1e-5)
