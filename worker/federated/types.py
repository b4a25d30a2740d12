"""Frozen values that the core passes around: who takes part, what is sent, what comes back."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import PreTrainedModel

from backend.contracts.base_models import Architecture
from backend.contracts.datasets import Example
from backend.contracts.enums import RoundKind, TaskKind
from backend.contracts.metrics import MetricName
from backend.contracts.training import TrainingConfig
from worker.federated.checkpoint import NO_CHECKPOINTS, Checkpointing
from worker.federated.objectives.objective import Objective

Tensors = dict[str, torch.Tensor]
"""Flat name -> tensor; the wire format carries exactly this."""

Metrics = dict[MetricName, float]


@dataclass(frozen=True, slots=True)
class ModuleShape:
    """A linear layer y = W x with W of shape `(out_features, in_features)`."""

    in_features: int
    out_features: int


@dataclass(frozen=True, slots=True)
class ClientSpec:
    """What the server knows of one client: shapes and counts, never data or weights."""

    client_id: str
    name: str
    architecture: Architecture
    modules: Mapping[str, ModuleShape]  # adapted module role (q, k, v, o, gate, ...) -> shape
    lora_rank: int
    lora_alpha: float
    num_examples: int  # training examples
    task: TaskKind


@dataclass(frozen=True, slots=True)
class FederationSpec:
    """All clients of a run and the geometry they share."""

    global_rank: int  # R: the shared middle matrices are R x R
    clients: tuple[ClientSpec, ...]  # sorted by client_id, so that order never matters
    probes: tuple[str, ...] = ()  # public texts of its own; empty: made for the kinds of tasks

    @property
    def num_slots(self) -> int:
        """L*: depth of the common stack, the largest number of layers."""
        return max(client.architecture.num_layers for client in self.clients)


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a strategy cannot serve a client; a whole sentence that names the remedy."""

    client_id: str
    reason: str


@dataclass(frozen=True, slots=True)
class ServerState:
    """Everything the server remembers between rounds; `wire` turns it into bytes and back."""

    tensors: Tensors
    meta: Mapping[str, Any] = field(default_factory=dict)  # JSON values only


@dataclass(frozen=True, slots=True)
class ClientPlan:
    """What one client receives in one round; all of it is on the wire and nothing else is."""

    client_id: str
    round_number: int
    kind: RoundKind
    seed: int  # of the run; every random stream of the client derives from it
    global_rank: int
    num_slots: int
    tensors: Tensors  # what the client loads; its encoded size is `bytes_down`
    settings: Mapping[str, Any] = field(default_factory=dict)  # JSON values, strategy's own


@dataclass(frozen=True, slots=True)
class ClientUpdate:
    """What one client's round gave. Only `shared` leaves the client."""

    client_id: str
    round_number: int
    num_examples: int
    shared: Tensors  # sent to the server
    private: Tensors  # kept by the client, given back to it in its next round
    metrics: Metrics


@dataclass(frozen=True, slots=True)
class AggregationReport:
    """What `aggregate` tells about itself: numbers shown on the run page."""

    num_clients: int
    values: Mapping[str, float] = field(default_factory=dict)
    clients: Mapping[str, Metrics] = field(default_factory=dict)  # what it found, by client id


@dataclass(frozen=True, slots=True)
class Progress:
    """A sign of life from within a round."""

    stage: str  # loading, probing, evaluating, training, exporting
    step: int
    num_steps: int
    values: Mapping[MetricName, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ClientData:
    """One client's partition, already split."""

    task: TaskKind
    train: tuple[Example, ...]
    validation: tuple[Example, ...]
    test: tuple[Example, ...]


@dataclass(frozen=True, slots=True)
class LocalClient:
    """One client at work: all that its training needs, all of it on its side of the wire."""

    spec: ClientSpec
    model: PreTrainedModel  # fresh base model, without adapter, on its device
    objective: Objective  # what the model is trained for and judged by
    data: ClientData
    training: TrainingConfig
    private: Tensors | None  # what its last accepted update kept; None in its first round
    on_progress: Callable[[Progress], None] = lambda progress: None
    checkpointing: Checkpointing = NO_CHECKPOINTS  # of the state within a round
