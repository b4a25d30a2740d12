import io
import json
import struct

import pytest
import torch
from safetensors.torch import save

from backend.updates.container import ContainerError, check_container
from worker.federated.wire import DTYPES


def check(data: bytes) -> None:
    check_container(io.BytesIO(data), len(data))


def container(header: object, body: bytes) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def entry(shape: list[int], start: int, stop: int, dtype: str = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


@pytest.mark.parametrize("dtype", sorted(DTYPES, key=str), ids=str)
def test_everything_that_the_wire_sends_is_taken(dtype: torch.dtype) -> None:
    tensors = {"one": torch.zeros(3, 2, dtype=dtype), "none": torch.zeros(0, dtype=dtype)}
    check(save(tensors, metadata={"fedbraid": "{}"}))


def test_a_container_without_tensors_is_taken() -> None:
    check(save({}, metadata={"fedbraid": "{}"}))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "ends after 0 bytes"),
        (b"1234567", "ends after 7 bytes"),
        (b"\xff" * 100, "header would have"),
        (struct.pack("<Q", 93) + b"x" * 92, "header would have 93 bytes"),
        (struct.pack("<Q", 2**24 + 1) + b" " * (2**24 + 1), "header would have 16777217"),
        (struct.pack("<Q", 9) + b"not json!", "not JSON"),
        (struct.pack("<Q", 200_000) + b"[" * 200_000, "not JSON"),
        (container([], b""), "not a JSON object"),
        (container({"a": 1}, b""), "wrong at 'a'"),
        (container({"a": entry([True], 0, 4)}, bytes(4)), "wrong at"),
        (container({"a": entry([-1], 0, 4)}, bytes(4)), "wrong at"),
        (container({"a": entry([1] * 9, 0, 4)}, bytes(4)), "wrong at"),
        (container({"a": {**entry([1], 0, 4), "code": "x"}}, bytes(4)), "wrong at"),
        (container({"a": entry([1], 0, 1, "F8_E4M3")}, bytes(1)), "has type 'F8_E4M3'"),
        (container({"a": entry([2], 0, 4)}, bytes(4)), "cannot lie at bytes 0 to 4"),
        (container({"a": entry([1], 4, 8)}, bytes(8)), "cannot lie at bytes 4 to 8"),
        (
            container({"a": entry([2], 0, 8), "b": entry([1], 4, 8)}, bytes(8)),
            "cannot lie at bytes 4 to 8",
        ),
        (container({"a": entry([1], 0, 4)}, bytes(5)), "5 follow the header"),
        (container({"a": entry([2], 0, 8)}, bytes(4)), "4 follow the header"),
        (container({}, b"smuggled"), "8 follow the header"),
    ],
)
def test_everything_else_is_refused_with_a_reason(data: bytes, reason: str) -> None:
    with pytest.raises(ContainerError, match=reason):
        check(data)
