"""Whether bytes are a safetensors container, found out without loading any tensor.

A container is an 8-byte little-endian length, a JSON header of that length, and one body that the
tensors of the header fill without gaps. What the tensors mean is checked where they are used, in
the aggregation; here it only matters that nothing else is ever stored under this name.
"""

import json
import math
import struct
from typing import Annotated, Any, BinaryIO

from pydantic import BaseModel, ConfigDict, Field, StrictInt, TypeAdapter, ValidationError

MAX_HEADER_BYTES = 16 * 2**20
MAX_DIMENSIONS = 8

_LENGTH = struct.Struct("<Q")
_ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "U8": 1, "U16": 2, "I32": 4, "I64": 8}
_METADATA = "__metadata__"
_OWN_KEY = "fedbraid"
_Count = Annotated[StrictInt, Field(ge=0, le=2**50)]


class ContainerError(Exception):
    """The bytes are no safetensors container that the platform takes."""


class _Entry(BaseModel):
    """One tensor of the header."""

    model_config = ConfigDict(extra="forbid")

    dtype: str
    shape: Annotated[list[_Count], Field(max_length=MAX_DIMENSIONS)]
    data_offsets: tuple[_Count, _Count]


_HEADER: TypeAdapter[dict[str, _Entry]] = TypeAdapter(dict[str, _Entry])


def check_container(stream: BinaryIO, size_bytes: int) -> dict[str, Any]:
    """Accepts a safetensors container; leaves the stream at the end of its header.

    Gives FedBraid's own values of the header, empty where there are none.

    Args:
        stream: at the first byte.
        size_bytes: of the whole container.

    Raises:
        ContainerError: truncated, garbage, an unexpected dtype, or tensors that do not fill the
            body exactly.
    """
    length_bytes = stream.read(_LENGTH.size)
    if len(length_bytes) < _LENGTH.size:
        raise ContainerError(f"it ends after {size_bytes} bytes")
    (length,) = _LENGTH.unpack(length_bytes)
    body_bytes = size_bytes - _LENGTH.size - length
    if length > MAX_HEADER_BYTES or body_bytes < 0:
        raise ContainerError(f"its header would have {length} bytes")
    end = 0
    entries, values = _read_header(stream.read(length))
    for name, entry in sorted(entries.items(), key=lambda item: item[1].data_offsets):
        item_bytes = _ITEM_BYTES.get(entry.dtype)
        if item_bytes is None:
            raise ContainerError(
                f"tensor {name[:100]!r} has type {entry.dtype[:20]!r}; sent are "
                f"{', '.join(_ITEM_BYTES)}"
            )
        start, stop = entry.data_offsets
        if start != end or stop - start != math.prod(entry.shape) * item_bytes:
            raise ContainerError(
                f"tensor {name[:100]!r} of shape {entry.shape} and type {entry.dtype} cannot lie "
                f"at bytes {start} to {stop}"
            )
        end = stop
    if end != body_bytes:
        raise ContainerError(f"its tensors take {end} bytes, but {body_bytes} follow the header")
    return values


def _read_header(header: bytes) -> tuple[dict[str, _Entry], dict[str, Any]]:
    try:
        content = json.loads(header)
    except (ValueError, RecursionError) as error:
        raise ContainerError("its header is not JSON") from error
    if not isinstance(content, dict):
        raise ContainerError("its header is not a JSON object")
    values = _own_values(content.pop(_METADATA, None))
    try:
        return _HEADER.validate_python(content), values
    except ValidationError as error:
        where = ".".join(str(part)[:100] for part in error.errors(include_url=False)[0]["loc"])
        raise ContainerError(f"its header is wrong at {where!r}") from error


def _own_values(metadata: object) -> dict[str, Any]:
    text = metadata.get(_OWN_KEY) if isinstance(metadata, dict) else None
    if not isinstance(text, str):
        return {}
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ContainerError("FedBraid's values in its header are not JSON") from error
    return values if isinstance(values, dict) else {}
