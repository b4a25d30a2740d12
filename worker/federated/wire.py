"""Tensors and values as bytes and back: one safetensors message, checked strictly on arrival.

A message is a safetensors file: an 8-byte length, a JSON header, raw little-endian buffers.
FedBraid's own values travel in the header as one canonical JSON text, so equal content gives equal
bytes. There is no pickle anywhere, and nothing that arrives is trusted before its kind, size,
names, shapes, types and finiteness are checked. Every `decode_*` refuses with `WireError` what is
not a message of its kind, and every `encode_*` what cannot travel.
"""

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load, save

from backend.contracts.enums import RoundKind
from backend.contracts.metrics import MetricName
from worker.federated.errors import InvalidUpdateError, WireError
from worker.federated.types import ClientPlan, ClientUpdate, ServerState, Tensors

MAX_MESSAGE_BYTES = 8 * 2**30
MAX_HEADER_BYTES = 16 * 2**20
DTYPES = frozenset(
    {
        torch.float64,
        torch.float32,
        torch.float16,
        torch.bfloat16,
        torch.uint8,
        torch.uint16,
        torch.int32,
        torch.int64,
    }
)

_METADATA_KEY = "fedbraid"


class _Header(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


H = TypeVar("H", bound=_Header)


class _StateHeader(_Header):
    meta: dict[str, Any]


class _PlanHeader(_Header):
    client_id: str
    round_number: int = Field(ge=0)
    kind: RoundKind
    seed: int
    global_rank: int = Field(ge=1)
    num_slots: int = Field(ge=1)
    settings: dict[str, Any]


class _UpdateHeader(_Header):
    client_id: str
    round_number: int = Field(ge=0)
    num_examples: int = Field(ge=0)
    metrics: dict[MetricName, float]


class _PrivateHeader(_Header):
    pass


def encode_state(state: ServerState) -> bytes:
    """Server state as bytes; equal states give equal bytes."""
    return _encode("state", state.tensors, _StateHeader(meta=dict(state.meta)))


def decode_state(data: bytes) -> ServerState:
    """Inverse of `encode_state`; `WireError` where the bytes are no server state."""
    tensors, header = _decode("state", data, _StateHeader)
    return ServerState(tensors=tensors, meta=header.meta)


def encode_plan(plan: ClientPlan) -> bytes:
    """A client's plan as bytes: everything that travels down to it in one round."""
    header = _PlanHeader(
        client_id=plan.client_id,
        round_number=plan.round_number,
        kind=plan.kind,
        seed=plan.seed,
        global_rank=plan.global_rank,
        num_slots=plan.num_slots,
        settings=dict(plan.settings),
    )
    return _encode("plan", plan.tensors, header)


def decode_plan(data: bytes) -> ClientPlan:
    """Inverse of `encode_plan`; `WireError` where the bytes are no plan."""
    tensors, header = _decode("plan", data, _PlanHeader)
    return ClientPlan(tensors=tensors, **dict(header))


def encode_update(update: ClientUpdate) -> bytes:
    """The shared half of a client's update as bytes; nothing private is in it.

    A metric that is not finite is refused with `WireError`.
    """
    header = _UpdateHeader.model_construct(
        client_id=update.client_id,
        round_number=update.round_number,
        num_examples=update.num_examples,
        metrics=dict(update.metrics),
    )
    return _encode("update", update.shared, header)


def decode_update(data: bytes, *, max_bytes: int = MAX_MESSAGE_BYTES) -> ClientUpdate:
    """Inverse of `encode_update`; `private` is empty.

    Bytes that are no update, or more than `max_bytes`, are refused with `WireError`, and tensors
    with NaN or infinity with `InvalidUpdateError`.
    """
    tensors, header = _decode("update", data, _UpdateHeader, max_bytes)
    require_finite(tensors, f"the update of client {header.client_id!r}")
    return ClientUpdate(shared=tensors, private={}, **dict(header))


def encode_private(private: Tensors) -> bytes:
    """What a client keeps between its rounds, as bytes for its own store."""
    return _encode("private", private, _PrivateHeader())


def decode_private(data: bytes) -> Tensors:
    """Inverse of `encode_private`; `WireError` where the bytes are no private tensors."""
    return _decode("private", data, _PrivateHeader)[0]


def payload_bytes(tensors: Mapping[str, torch.Tensor]) -> int:
    """Bytes of the values alone, without names and header."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def encoded_bytes(tensors: Mapping[str, torch.Tensor]) -> int:
    """Bytes of the tensors as a message with names and header; 0 when there is nothing to send."""
    return len(save(_contiguous(tensors))) if tensors else 0


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """What a tensor from the other side must look like."""

    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32


def require_tensors(
    tensors: Mapping[str, torch.Tensor], expected: Mapping[str, TensorSpec], origin: str
) -> None:
    """Accepts exactly the expected names, shapes and types, all of it finite.

    Args:
        tensors: what arrived.
        expected: name -> shape and dtype; every name must be there and no other.
        origin: who sent it, for the message, such as "the update of client 'clinic'".

    Raises:
        InvalidUpdateError: names the first tensor that does not fit and what was expected.
    """
    missing = sorted(expected.keys() - tensors.keys())
    unknown = sorted(tensors.keys() - expected.keys())
    if missing or unknown:
        raise InvalidUpdateError(
            f"In {origin}, "
            + " and ".join(
                f"{word} {', '.join(map(repr, names[:3]))}"
                for word, names in (("these are missing:", missing), ("unknown are", unknown))
                if names
            )
            + ": sender and server must run the same strategy with the same parameters."
        )
    for name, spec in expected.items():
        tensor = tensors[name]
        if tuple(tensor.shape) != spec.shape or tensor.dtype != spec.dtype:
            raise InvalidUpdateError(
                f"In {origin}, {name!r} is {tuple(tensor.shape)} {tensor.dtype}, expected "
                f"{spec.shape} {spec.dtype}: sender and server must agree on ranks and depth."
            )
    require_finite(tensors, origin)


def require_finite(tensors: Mapping[str, torch.Tensor], origin: str) -> None:
    """Refuses NaN and infinity.

    Raises:
        InvalidUpdateError: names the first such tensor.
    """
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise InvalidUpdateError(
                f"In {origin}, {name!r} holds NaN or infinity: lower the learning rate or the "
                "gradient clipping norm and train the round again."
            )


def pack_mask(selected: torch.Tensor, size: int) -> torch.Tensor:
    """The smaller of a bitmap and a list of 16-bit positions (32-bit from 2^16 on).

    Args:
        selected: positions, ascending, int64 in [0, size).
        size: number of positions there are.

    Returns:
        uint8 (ceil(size / 8),), lowest bit first, or uint16 / int32 (len(selected),).
    """
    position_dtype = torch.uint16 if size <= 2**16 else torch.int32
    positions = selected.cpu().to(position_dtype)
    if positions.numel() * positions.element_size() < -(-size // 8):
        return positions
    bits = torch.zeros(-(-size // 8) * 8, dtype=torch.uint8)
    bits[selected.cpu()] = 1
    weights = 2 ** torch.arange(8, dtype=torch.uint8)
    return (bits.view(-1, 8) * weights).sum(dim=1).to(torch.uint8)


def unpack_mask(packed: torch.Tensor, size: int, num_selected: int, origin: str) -> torch.Tensor:
    """Inverse of `pack_mask`, positions ascending, int64.

    Raises:
        InvalidUpdateError: the mask does not select `num_selected` different positions.
    """
    if packed.dtype == torch.uint8 and packed.shape == (-(-size // 8),):
        bits = packed[:, None].bitwise_right_shift(torch.arange(8, dtype=torch.uint8)) & 1
        positions = bits.flatten().nonzero().flatten()
    else:
        positions = packed.flatten().to(torch.int64)
    ascending = bool((positions[1:] > positions[:-1]).all())
    inside = bool(((positions >= 0) & (positions < size)).all())
    if packed.dim() != 1 or len(positions) != num_selected or not ascending or not inside:
        raise InvalidUpdateError(
            f"In {origin}, the mask selects {len(positions)} of {size} positions (or not in rising "
            f"order), expected {num_selected}: sender and server must agree on rank and sparsity."
        )
    return positions


def pack_entries(dense: torch.Tensor, held: torch.Tensor) -> torch.Tensor:
    """The held entries of each matrix, (slots, R, R) and flat positions -> (slots, num_kept)."""
    return dense.flatten(1).index_select(1, held)


def unpack_entries(values: torch.Tensor, held: torch.Tensor, rank: int) -> torch.Tensor:
    """Inverse of `pack_entries`, with zeros elsewhere: (slots, num_kept) -> (slots, R, R)."""
    dense = torch.zeros(values.shape[0], rank * rank, dtype=values.dtype, device=values.device)
    return dense.index_copy(1, held, values).view(-1, rank, rank)


def _contiguous(tensors: Mapping[str, torch.Tensor]) -> Tensors:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def _encode(kind: str, tensors: Mapping[str, torch.Tensor], header: _Header) -> bytes:
    for name, tensor in tensors.items():
        if tensor.dtype not in DTYPES:
            raise WireError(f"Tensor {name!r} has type {tensor.dtype}, which is never sent.")
    content = {"message": kind, **header.model_dump(mode="json")}
    try:
        text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise WireError(f"The header of a {kind} is not plain finite JSON: {error}.") from error
    return save(_contiguous(tensors), metadata={_METADATA_KEY: text})


def _decode(
    kind: str, data: bytes, header_type: type[H], max_bytes: int = MAX_MESSAGE_BYTES
) -> tuple[Tensors, H]:
    if len(data) > max_bytes:
        raise WireError(f"A {kind} of {len(data)} bytes exceeds the limit of {max_bytes}.")
    content = _read_header(kind, data)
    if content.pop("message", None) != kind:
        raise WireError(f"These bytes are a FedBraid message, but not a {kind}.")
    try:
        header = header_type.model_validate(content)
        loaded = load(data)
    except ValidationError as error:
        fields = ", ".join(".".join(map(str, e["loc"])) or "header" for e in error.errors())
        raise WireError(f"The header of this {kind} is invalid at: {fields}.") from error
    except (SafetensorError, KeyError) as error:
        raise WireError(f"This {kind} is damaged: {error}. Send it again.") from error
    tensors = {name: loaded[name] for name in sorted(loaded)}  # the library's order is arbitrary
    for name, tensor in tensors.items():
        if tensor.dtype not in DTYPES:
            raise WireError(f"In this {kind}, {name!r} has the unexpected type {tensor.dtype}.")
    return tensors, header


def _read_header(kind: str, data: bytes) -> dict[str, Any]:
    if len(data) < 8:
        raise WireError(f"This {kind} is truncated: {len(data)} bytes. Send it again.")
    (length,) = struct.unpack("<Q", data[:8])
    if length > min(MAX_HEADER_BYTES, len(data) - 8):
        raise WireError(f"This {kind} is truncated or not a safetensors message. Send it again.")
    try:
        text = json.loads(data[8 : 8 + length])["__metadata__"][_METADATA_KEY]
        content = json.loads(text)
    except (ValueError, KeyError, TypeError) as error:
        raise WireError(f"This {kind} has no readable FedBraid header. Send it again.") from error
    if not isinstance(content, dict):
        raise WireError(f"This {kind} has no readable FedBraid header. Send it again.")
    return content
