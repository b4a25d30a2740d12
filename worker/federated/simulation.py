"""A whole federation in one process, over the same code paths as the platform, without services.

Every message really becomes bytes and back, so what a simulation finds holds on the wire too.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from backend.contracts.strategies import Params
from backend.contracts.training import TrainingConfig
from worker.federated.errors import InvalidConfigError
from worker.federated.objectives.answers import answer_objective
from worker.federated.objectives.objective import Objective
from worker.federated.roles import architecture_of, module_shapes
from worker.federated.strategies.registry import build_strategy
from worker.federated.types import (
    AggregationReport,
    ClientData,
    ClientPlan,
    ClientSpec,
    ClientUpdate,
    FederationSpec,
    LocalClient,
    Metrics,
    ServerState,
    Tensors,
)
from worker.federated.wire import (
    decode_plan,
    decode_private,
    decode_state,
    decode_update,
    encode_plan,
    encode_private,
    encode_state,
    encode_update,
)


@dataclass(frozen=True, slots=True)
class SimulatedClient:
    """One participant: its base model stays untouched, each round works on a copy."""

    client_id: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    data: ClientData
    lora_rank: int
    lora_alpha: float
    make_objective: Callable[[TrainingConfig], Objective] | None = None  # None: causal answers
    bind_objective: Callable[[PreTrainedModel, TrainingConfig], Objective] | None = None
    """For objectives that are part of a model, such as its own head: gets each round's copy."""
    private: Tensors | None = None  # what it brings into its first round, such as factors

    def objective(
        self, training: TrainingConfig, model: PreTrainedModel | None = None
    ) -> Objective:
        """A fresh objective for a copy of the model (None: the model itself)."""
        if self.bind_objective is not None:
            return self.bind_objective(model or self.model, training)
        if self.make_objective is not None:
            return self.make_objective(training)
        return answer_objective(self.tokenizer, self.data, training)

    def spec(self) -> ClientSpec:
        """What the server may know of it."""
        return ClientSpec(
            client_id=self.client_id,
            name=self.client_id,
            architecture=architecture_of(self.model),
            modules=module_shapes(self.model),
            lora_rank=self.lora_rank,
            lora_alpha=self.lora_alpha,
            num_examples=len(self.data.train),
            task=self.data.task,
        )


@dataclass(frozen=True, slots=True)
class SimulatedRound:
    """What one round gave."""

    metrics: Mapping[str, Metrics]  # by client id
    report: AggregationReport


@dataclass(frozen=True, slots=True)
class SimulationResult:
    """All rounds, the final state, and what was delivered."""

    rounds: Sequence[SimulatedRound]
    delivered: Mapping[str, Metrics]  # by client id; empty without an output folder
    state: ServerState
    private: Mapping[str, Tensors]  # by client id


def simulate(
    params: Params,
    clients: Sequence[SimulatedClient],
    *,
    num_rounds: int,
    training: TrainingConfig,
    global_rank: int,
    seed: int,
    output: Path | None = None,
) -> SimulationResult:
    """Runs a federation from the first round to delivered adapters.

    Args:
        params: the strategy and its parameters.
        clients: in any order.
        num_rounds: training rounds, at least 1.
        training: equal for all clients.
        global_rank: R.
        seed: of the run; equal arguments give equal results on a CPU.
        output: each client's adapter goes to `output/<client_id>`; None: nothing is delivered.

    Raises:
        InvalidConfigError: no round, or the strategy refuses a client.
    """
    if num_rounds < 1:
        raise InvalidConfigError(f"num_rounds is {num_rounds}: it must be at least 1.")
    strategy = build_strategy(params)
    members = sorted(clients, key=lambda client: client.client_id)
    federation = FederationSpec(global_rank, tuple(client.spec() for client in members))
    refusals = strategy.check(federation)
    if refusals:
        raise InvalidConfigError(" ".join(refusal.reason for refusal in refusals))
    state = strategy.init_state(federation, seed)
    private = {c.client_id: encode_private(c.private) for c in members if c.private is not None}
    rounds = []

    def at_work(client: SimulatedClient, spec: ClientSpec) -> LocalClient:
        kept, model = private.get(client.client_id), copy.deepcopy(client.model)
        return LocalClient(
            spec=spec,
            model=model,
            objective=client.objective(training, model),
            data=client.data,
            training=training,
            private=None if kept is None else decode_private(kept),
        )

    pairs = list(zip(members, federation.clients, strict=True))
    for round_number in range(1, num_rounds + 1):
        plans = strategy.configure_round(state, federation, round_number, deliver=False)
        updates: list[ClientUpdate] = []
        for client, spec in pairs:
            plan = _over_the_wire(plans[client.client_id])
            update = strategy.train_client(plan, at_work(client, spec))
            private[client.client_id] = encode_private(update.private)
            updates.append(decode_update(encode_update(update)))
        state, report = strategy.aggregate(state, federation, iter(updates))
        state = decode_state(encode_state(state))
        rounds.append(SimulatedRound({u.client_id: u.metrics for u in updates}, report))
    delivered = {}
    if output is not None:
        plans = strategy.configure_round(state, federation, num_rounds + 1, deliver=True)
        for client, spec in pairs:
            plan, folder = _over_the_wire(plans[client.client_id]), output / client.client_id
            delivered[client.client_id] = strategy.deliver_client(
                plan, at_work(client, spec), folder
            )
    kept_tensors = {client_id: decode_private(data) for client_id, data in private.items()}
    return SimulationResult(rounds, delivered, state, kept_tensors)


def _over_the_wire(plan: ClientPlan) -> ClientPlan:
    return decode_plan(encode_plan(plan))
