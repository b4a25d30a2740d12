import json
import struct
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from backend.contracts.enums import RoundKind
from backend.contracts.metrics import MetricName
from worker.federated.errors import InvalidUpdateError, WireError
from worker.federated.types import ClientPlan, ClientUpdate, ServerState
from worker.federated.wire import (
    TensorSpec,
    decode_plan,
    decode_private,
    decode_state,
    decode_update,
    encode_plan,
    encode_private,
    encode_state,
    encode_update,
    encoded_bytes,
    pack_entries,
    pack_mask,
    payload_bytes,
    require_tensors,
    unpack_entries,
    unpack_mask,
)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def make_update(**changes: Any) -> ClientUpdate:
    values: dict[str, Any] = {
        "client_id": "clinic",
        "round_number": 3,
        "num_examples": 12,
        "shared": {"values/q": random(2, 4), "mask/q": torch.tensor([1, 5], dtype=torch.uint16)},
        "private": {"factors/A": random(2, 2)},
        "metrics": {MetricName.TRAIN_LOSS: 0.25},
    }
    return ClientUpdate(**{**values, **changes})


def same(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return one.keys() == two.keys() and all(
        one[name].dtype == two[name].dtype and torch.equal(one[name], two[name]) for name in one
    )


def test_state_comes_back_and_its_bytes_are_canonical() -> None:
    tensors = {"slots/b": random(2, 3, 3), "slots/a": random(2, 3, 3, seed=1)}
    data = encode_state(ServerState(tensors, {"seed": 7, "note": "ü"}))
    back = decode_state(data)
    assert same(dict(back.tensors), tensors)
    assert back.meta == {"seed": 7, "note": "ü"}
    swapped = dict(reversed(tensors.items()))
    assert encode_state(ServerState(swapped, {"note": "ü", "seed": 7})) == data
    assert encode_state(back) == data


def test_plan_comes_back() -> None:
    plan = ClientPlan(
        client_id="clinic",
        round_number=2,
        kind=RoundKind.DELIVER,
        seed=2**62,
        global_rank=8,
        num_slots=4,
        tensors={"slots/q": random(4, 8, 8)},
        settings={"joint": True},
    )
    back = decode_plan(encode_plan(plan))
    assert same(back.tensors, plan.tensors)
    assert (back.kind, back.seed, back.settings) == (plan.kind, plan.seed, plan.settings)


def test_nothing_private_is_in_an_update() -> None:
    update = make_update(private={"factors/secret": torch.full((4,), 1.2345)})
    data = encode_update(update)
    assert b"secret" not in data
    assert struct.pack("<f", 1.2345) not in data
    back = decode_update(data)
    assert back.private == {}
    assert same(back.shared, update.shared)
    assert back.metrics == update.metrics
    assert (back.client_id, back.round_number, back.num_examples) == ("clinic", 3, 12)


def test_private_comes_back() -> None:
    private = {"moments/x/step": torch.tensor(3.0), "measured/a": torch.tensor(0.1).double()}
    assert same(decode_private(encode_private(private)), private)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_update_with_a_number_that_is_not_finite_is_refused(value: float) -> None:
    broken = random(2, 4)
    broken[1, 2] = value
    with pytest.raises(InvalidUpdateError, match=r"'clinic'.*'values/q' holds NaN or infinity"):
        decode_update(encode_update(make_update(shared={"values/q": broken})))


def test_metric_that_is_not_finite_cannot_be_sent() -> None:
    with pytest.raises(WireError, match="finite JSON"):
        encode_update(make_update(metrics={MetricName.TRAIN_LOSS: float("nan")}))


def test_other_messages_and_other_bytes_are_refused() -> None:
    data = encode_update(make_update())
    with pytest.raises(WireError, match="but not a state"):
        decode_state(data)
    for broken in (
        b"",
        b"short",
        data[:-1],
        data[:40],
        b"\xff" * 64,
        data + b"x",
        b"\x80\x04pickle" * 8,
    ):
        with pytest.raises(WireError):
            decode_update(broken)
    with pytest.raises(WireError, match="no readable FedBraid header"):
        decode_update(save({"a": torch.zeros(1)}))


def test_too_many_bytes_are_refused_before_they_are_read() -> None:
    with pytest.raises(WireError, match="exceeds the limit of 10"):
        decode_update(encode_update(make_update()), max_bytes=10)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"round_number": -1}, "round_number"),
        ({"num_examples": "many"}, "num_examples"),
        ({"metrics": {"speed": 1.0}}, "metrics"),
        ({"extra": 1}, "extra"),
    ],
)
def test_header_fields_are_checked_by_name(changes: dict[str, Any], field: str) -> None:
    header = {"message": "update", "client_id": "a", "round_number": 1, "num_examples": 1}
    text = json.dumps({**header, "metrics": {}, **changes})
    with pytest.raises(WireError, match=field):
        decode_update(save({"a": torch.zeros(1)}, metadata={"fedbraid": text}))


def test_unexpected_types_are_refused_both_ways() -> None:
    shared = {"a": torch.zeros(2, dtype=torch.complex64)}
    with pytest.raises(WireError, match="never sent"):
        encode_update(make_update(shared=shared))
    header = {"message": "update", "client_id": "a", "round_number": 1, "num_examples": 1}
    text = json.dumps({**header, "metrics": {}})
    with pytest.raises(WireError, match="unexpected type"):
        decode_update(save({"a": torch.zeros(2).bool()}, metadata={"fedbraid": text}))


EXPECTED = {"a": TensorSpec((2, 3)), "b": TensorSpec((1,), torch.uint8)}
GOOD = {"a": torch.zeros(2, 3), "b": torch.zeros(1, dtype=torch.uint8)}


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"a": GOOD["a"]}, "missing: 'b'"),
        ({**GOOD, "c": GOOD["a"]}, "unknown are 'c'"),
        ({**GOOD, "a": torch.zeros(3, 2)}, r"'a' is \(3, 2\)"),
        ({**GOOD, "a": torch.zeros(2, 3).half()}, r"'a' is .*float16, expected"),
        ({**GOOD, "a": torch.full((2, 3), torch.nan)}, "'a' holds NaN"),
    ],
)
def test_tensors_that_do_not_fit_are_named(tensors: dict[str, torch.Tensor], message: str) -> None:
    require_tensors(GOOD, EXPECTED, "the test")
    with pytest.raises(InvalidUpdateError, match=message):
        require_tensors(tensors, EXPECTED, "the test")


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_masks_come_back(data: st.DataObject) -> None:
    size = data.draw(st.integers(1, 300))
    chosen = data.draw(st.sets(st.integers(0, size - 1), min_size=1))
    positions = torch.tensor(sorted(chosen))
    packed = pack_mask(positions, size)
    assert torch.equal(unpack_mask(packed, size, len(chosen), "the test"), positions)
    assert payload_bytes({"": packed}) == min(-(-size // 8), 2 * len(chosen))


def test_the_smaller_form_of_a_mask_is_sent() -> None:
    # R = 128, r = 16 over all entries: 512 B of positions instead of 2048 B of bits.
    few = pack_mask(torch.arange(256), 128 * 128)
    assert (few.dtype, few.numel()) == (torch.uint16, 256)
    many = pack_mask(torch.arange(4096), 128 * 128)
    assert (many.dtype, many.numel()) == (torch.uint8, 2048)


@pytest.mark.parametrize(
    "packed",
    [
        torch.tensor([3, 1], dtype=torch.uint16),
        torch.tensor([1, 1], dtype=torch.uint16),
        torch.tensor([1, 40], dtype=torch.uint16),
        torch.tensor([1], dtype=torch.uint16),
        torch.tensor([255, 0, 0, 0], dtype=torch.uint8),
        torch.tensor([[1, 2]], dtype=torch.uint16),
    ],
)
def test_masks_that_select_something_else_are_refused(packed: torch.Tensor) -> None:
    with pytest.raises(InvalidUpdateError, match="expected 2"):
        unpack_mask(packed, 32, 2, "the test")


def test_held_entries_come_back_exactly() -> None:
    dense = random(3, 4, 4)
    held = torch.tensor([0, 5, 6, 15])
    values = pack_entries(dense, held)
    assert values.shape == (3, 4)
    again = unpack_entries(values, held, 4)
    assert torch.equal(again.flatten(1)[:, held], dense.flatten(1)[:, held])
    assert int((again != 0).sum()) == 12


def test_encoded_bytes_are_payload_and_header() -> None:
    tensors = {"values/q": random(4, 16)}
    assert encoded_bytes({}) == 0
    assert payload_bytes(tensors) == 4 * 16 * 4
    assert payload_bytes(tensors) < encoded_bytes(tensors) < payload_bytes(tensors) + 200
