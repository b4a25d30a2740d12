import math

import numpy as np
import pytest
import torch
from scipy import stats

from worker.federated.privacy.keystream import derive_key, gaussian, keystream

KEY = bytes(range(32))


def test_the_stream_is_chacha20_of_rfc_8439() -> None:
    # Appendix A.1, test vectors 1 and 2: key and nonce zero, blocks 0 and 1.
    first = "76b8e0ada0f13d90405d6ae55386bd28bdd219b8a08ded1aa836efcc8b770dc7"
    second = "9f07e7be5551387a98ba977c732d080dcb0f29a048e3656912c6533e32ee7aed"
    stream = keystream(bytes(32), 96)
    assert (stream[:32].hex(), stream[64:].hex()) == (first, second)


def test_a_derived_key_depends_on_key_and_purpose() -> None:
    keys = {derive_key(key, purpose) for key in (KEY, bytes(32)) for purpose in ("a", "b")}
    assert len(keys) == 4
    assert {len(key) for key in keys} == {32}


@pytest.mark.parametrize("count", [0, 1, 7, 1000])
def test_noise_follows_from_its_key(count: int) -> None:
    noise = gaussian(KEY, count)
    assert noise.shape == (count,)
    assert noise.dtype == torch.float64
    assert torch.equal(noise, gaussian(KEY, count))
    assert count == 0 or not torch.equal(noise, gaussian(bytes(32), count))


def test_noise_is_what_box_and_muller_make_of_the_stream() -> None:
    words = np.frombuffer(bytes(keystream(KEY, 16 * 3)), dtype="<u8") >> np.uint64(11)
    first, second = words[:3].astype(float), words[3:].astype(float)
    radius = [math.sqrt(-2 * math.log((u + 1) / 2**53)) for u in first]
    turns = [2 * math.pi * u / 2**53 for u in second]
    expected = [r * math.cos(t) for r, t in zip(radius, turns, strict=True)]
    expected += [r * math.sin(t) for r, t in zip(radius, turns, strict=True)]
    assert gaussian(KEY, 6).tolist() == pytest.approx(expected, rel=1e-12)


def test_noise_is_standard_normal_and_independent() -> None:
    noise = gaussian(KEY, 200_000).numpy()
    assert stats.kstest(noise, "norm").pvalue > 1e-3
    halves = noise.reshape(2, -1)  # the two values of each pair
    assert abs(np.corrcoef(halves)[0, 1]) < 4 / math.sqrt(halves.shape[1])
    assert abs(np.corrcoef(np.abs(halves))[0, 1]) < 4 / math.sqrt(halves.shape[1])
    assert abs(np.corrcoef(noise[:-1], noise[1:])[0, 1]) < 4 / math.sqrt(len(noise))
