"""Federations of one tiny model, and updates whose every number is the test's own."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch

from backend.contracts.params.h2tune import H2TuneParams
from backend.contracts.params.lora import FfaLoraParams
from tests.worker.federated.strategies.factors import update_of
from tests.worker.federated.tiny import make_client
from worker.federated.adapters.geometry import make_geometry
from worker.federated.strategies.ffa_lora import FfaLora
from worker.federated.strategies.h2tune import H2Tune
from worker.federated.types import ClientSpec, ClientUpdate, FederationSpec, ServerState
from worker.federated.wire import pack_entries, pack_mask

FFA = FfaLoraParams()
H2TUNE = H2TuneParams()
GLOBAL_RANK = 4

Draw = Callable[[tuple[int, ...]], np.ndarray]
"""Numbers in a shape."""


def federation(num_clients: int, *, ranks: Sequence[int] = ()) -> FederationSpec:
    """Clients `a`, `b`, ... with 10, 20, ... examples and rank 2 unless given."""
    one = make_client("a", num_layers=1, width=16).spec()
    clients = [
        replace(
            one,
            client_id="abcdefghijklm"[number],
            lora_rank=ranks[number] if ranks else 2,
            num_examples=10 * (number + 1),
        )
        for number in range(num_clients)
    ]
    return FederationSpec(GLOBAL_RANK, tuple(clients))


def ffa_state(members: FederationSpec, *, seed: int = 0) -> ServerState:
    """A state whose B is not zero, so that values and changes differ."""
    empty = FfaLora(FFA).init_state(members, seed)
    source = np.random.default_rng(seed)
    tensors = {n: torch.from_numpy(source.normal(size=t.shape)).float() for n, t in
               empty.tensors.items()}  # fmt: skip
    return ServerState(tensors, empty.meta)


def ffa_update(client: ClientSpec, state: ServerState, draw: Draw) -> ClientUpdate:
    """An FFA-LoRA client whose B changed by what is drawn."""
    shared = {name: t + torch.from_numpy(draw(tuple(t.shape))).float() for name, t in
              state.tensors.items()}  # fmt: skip
    return update_of(client, shared)


def slots_state(members: FederationSpec) -> ServerState:
    """H2Tune's state before round 1."""
    return H2Tune(H2TUNE).init_state(members, 0)


def slots_update(
    client: ClientSpec, draw: Draw, *, coverage: float = 1.0, roles: Sequence[str] = ()
) -> ClientUpdate:
    """An H2Tune client whose changes of the common slots are what is drawn, cut to its block."""
    geometry = make_geometry("block", client.lora_rank, GLOBAL_RANK)
    selected = torch.arange(geometry.num_selected)
    held = geometry.held_entries(selected)
    shared = {"coverage/all": torch.full((client.architecture.num_layers,), coverage)}
    for role in roles or client.modules:
        whole = draw((client.architecture.num_layers, GLOBAL_RANK, GLOBAL_RANK))
        shared[f"values/{role}"] = pack_entries(torch.from_numpy(whole).float(), held)
        shared[f"mask/{role}"] = pack_mask(selected, geometry.num_selectable)
    return update_of(client, shared)


def normal(seed: int, scale: float = 1.0) -> Draw:
    """Independent normal numbers."""
    source = np.random.default_rng(seed)
    return lambda shape: source.normal(scale=scale, size=shape)


def constant(value: float) -> Draw:
    """The same number everywhere."""
    return lambda shape: np.full(shape, value)


def flat(tensors: Mapping[str, torch.Tensor]) -> np.ndarray:
    """All numbers in one row, fp64, names in order."""
    return np.concatenate([tensors[name].double().numpy().ravel() for name in sorted(tensors)])
