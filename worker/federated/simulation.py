"""A whole federation in one process, over the same code paths as the platform, without services.

Every message really becomes bytes and back, so what a simulation finds holds on the wire too.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from backend.contracts.h2tune_defaults import exchanges_codes
from backend.contracts.privacy import NO_PRIVACY, PrivacySettings, privacy_refusals
from backend.contracts.robustness import TRUSTING, Robustness, robustness_refusals
from backend.contracts.round_policy import EVERYBODY, RoundPolicy, policy_refusals
from backend.contracts.strategies import Params
from backend.contracts.training import TrainingConfig
from worker.federated.arrivals import Arrivals, Delays, on_time
from worker.federated.errors import InvalidConfigError
from worker.federated.objectives.answers import answer_objective
from worker.federated.objectives.objective import Objective
from worker.federated.privacy.private import reproducible_key, with_noise
from worker.federated.privacy.secure_strategy import (
    Dropouts,
    SecurelyAggregated,
    nobody,
    simulated_opening,
)
from worker.federated.robustness.attacks import Tamper, honest
from worker.federated.robustness.coordinates import coordinates_of
from worker.federated.robustness.robust_strategy import with_robustness, without_too_large
from worker.federated.robustness.scores import score_clients
from worker.federated.roles import architecture_of, module_shapes
from worker.federated.staleness import discounted
from worker.federated.strategies.registry import build_strategy
from worker.federated.strategy import Strategy
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
    tamper: Tamper = honest  # what a hostile client does to its update before it leaves

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
    refused: Mapping[str, str] = field(default_factory=dict)  # by client id: why it did not count


@dataclass(frozen=True, slots=True)
class SimulationResult:
    """All rounds, the final state, and what was delivered."""

    rounds: Sequence[SimulatedRound]  # of training
    delivered: Mapping[str, Metrics]  # by client id; empty without an output folder
    state: ServerState
    private: Mapping[str, Tensors]  # by client id
    gauge: SimulatedRound | None = None  # before round 1, where models agree on codes first


def simulate(
    params: Params,
    clients: Sequence[SimulatedClient],
    *,
    num_rounds: int,
    training: TrainingConfig,
    global_rank: int,
    seed: int,
    output: Path | None = None,
    privacy: PrivacySettings = NO_PRIVACY,
    dropouts: Dropouts = nobody,
    robustness: Robustness = TRUSTING,
    round_policy: RoundPolicy = EVERYBODY,
    delays: Delays = on_time,
    probes: Sequence[str] = (),
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
        privacy: how clients protect what they send. Noise follows from the seed here.
        dropouts: whose updates get lost on their way, by round; with secure aggregation only.
        robustness: what is done about hostile clients.
        round_policy: how many clients are at work in a round, and its buffer. There is no clock
            here and nobody fails, so quorum and deadline have no effect.
        delays: in which order updates come, for rounds with a buffer.
        probes: public texts for gauges; empty: made for the kinds of tasks.

    Raises:
        InvalidConfigError: no round, or the strategy refuses a client, the protection or the
            robust rule.
        InvalidUpdateError: no update of a round can be used, or too few for the robust rule.
    """
    if num_rounds < 1:
        raise InvalidConfigError(f"num_rounds is {num_rounds}: it must be at least 1.")
    num_at_work = round_policy.num_participants(len(clients))
    impossible = {
        **policy_refusals(params, round_policy, len(clients)),
        **robustness_refusals(params, robustness, round_policy.quorum(num_at_work), privacy),
    }
    if impossible:
        raise InvalidConfigError(" ".join(impossible.values()))
    protected = _protected(params, privacy, dropouts)
    strategy = with_robustness(protected, params, robustness)
    ordered = sorted(clients, key=lambda client: client.client_id)
    members = [_Member(client, client.spec(), training) for client in ordered]
    specs = tuple(member.spec for member in members)
    federation = FederationSpec(global_rank, specs, tuple(probes))
    refusals = strategy.check(federation)
    if refusals:
        raise InvalidConfigError(" ".join(refusal.reason for refusal in refusals))
    server = _Server(strategy, params, federation, privacy, robustness)
    state = strategy.init_state(federation, seed)
    gauge = None
    if exchanges_codes(params, [spec.task for spec in federation.clients]):
        state, gauge = _agree_on_codes(protected, federation, state, members)
    rounds = []
    by_id = {member.client_id: member for member in members}
    arrivals = Arrivals(round_policy, list(by_id), seed, delays)
    for round_number in range(1, num_rounds + 1):
        plans = strategy.configure_round(state, federation, round_number, deliver=False)
        for client_id in arrivals.starting(round_number):
            arrivals.send(by_id[client_id].train(strategy, plans[client_id]))
        updates = arrivals.take()
        ages = {update.client_id: round_number - update.round_number for update in updates}
        weighted = list(discounted(updates, ages, round_policy.staleness_exponent))
        state, result = server.close_round(state, weighted)
        rounds.append(result)
    delivered = {}
    if output is not None:
        plans = strategy.configure_round(state, federation, num_rounds + 1, deliver=True)
        for member in members:
            plan, folder = plans[member.client_id], output / member.client_id
            delivered[member.client_id] = member.deliver(strategy, plan, folder)
    private = {m.client_id: decode_private(m.kept) for m in members if m.kept is not None}
    return SimulationResult(rounds, delivered, state, private, gauge)


def _agree_on_codes(
    strategy: Strategy,
    federation: FederationSpec,
    state: ServerState,
    members: "Sequence[_Member]",
) -> tuple[ServerState, SimulatedRound]:
    """The round before the first; robust rules have no part in it."""
    plans = strategy.configure_round(state, federation, 0, deliver=False)
    updates = [member.read_probes(strategy, plans[member.client_id]) for member in members]
    next_state, report = strategy.aggregate(state, federation, updates)
    metrics = {update.client_id: update.metrics for update in updates}
    return decode_state(encode_state(next_state)), SimulatedRound(metrics, report)


def _protected(params: Params, privacy: PrivacySettings, dropouts: Dropouts) -> Strategy:
    reasons = privacy_refusals(params, privacy)
    if reasons:
        raise InvalidConfigError(" ".join(reasons))
    noise = privacy.differential_privacy
    strategy = with_noise(build_strategy(params), params, noise, reproducible_key)
    if privacy.secure_aggregation is None:
        return strategy
    return SecurelyAggregated(
        strategy,
        params,
        privacy.secure_aggregation,
        simulated_opening(privacy.secure_aggregation, dropouts),
    )


@dataclass(frozen=True, slots=True)
class _Server:
    """What the server does when the updates of a round are in."""

    strategy: Strategy
    params: Params
    federation: FederationSpec
    privacy: PrivacySettings
    robustness: Robustness

    def close_round(
        self, state: ServerState, updates: list[ClientUpdate]
    ) -> tuple[ServerState, SimulatedRound]:
        """The next state, as it comes back from the wire, and what the round gave."""
        refused: dict[str, str] = {}
        used, bound = updates, self.robustness.max_update_norm
        if bound is not None:
            coordinates = coordinates_of(self.params, state, self.federation)
            used, refused = without_too_large(coordinates, updates, bound)
        next_state, report = self.strategy.aggregate(state, self.federation, used)
        scores = score_clients(self.params, self.privacy, state, self.federation, used)
        metrics: dict[str, Metrics] = {
            update.client_id: {
                **update.metrics,
                **scores.get(update.client_id, {}),
                **report.clients.get(update.client_id, {}),
            }
            for update in updates
        }
        next_state = decode_state(encode_state(next_state))
        return next_state, SimulatedRound(metrics, report, refused)


class _Member:
    """One client from round to round; what it gets, keeps and gives becomes bytes on the way."""

    def __init__(self, client: SimulatedClient, spec: ClientSpec, training: TrainingConfig) -> None:
        self.client_id = client.client_id
        self.spec = spec
        self.kept = None if client.private is None else encode_private(client.private)
        self._client = client
        self._training = training

    def train(self, strategy: Strategy, plan: ClientPlan) -> ClientUpdate:
        """One training round on a fresh copy of the base model; remembers what it keeps."""
        update = strategy.train_client(_over_the_wire(plan), self._at_work())
        self.kept = encode_private(update.private)
        sent = self._client.tamper(plan, update)
        return decode_update(encode_update(sent))

    def read_probes(self, strategy: Strategy, plan: ClientPlan) -> ClientUpdate:
        """What its base model makes of the probe texts; it keeps nothing of that."""
        update = strategy.train_client(_over_the_wire(plan), self._at_work())
        return decode_update(encode_update(update))

    def deliver(self, strategy: Strategy, plan: ClientPlan, folder: Path) -> Metrics:
        """Writes the final adapter and measures it."""
        return strategy.deliver_client(_over_the_wire(plan), self._at_work(), folder)

    def _at_work(self) -> LocalClient:
        model = copy.deepcopy(self._client.model)
        return LocalClient(
            spec=self.spec,
            model=model,
            objective=self._client.objective(self._training, model),
            data=self._client.data,
            training=self._training,
            private=None if self.kept is None else decode_private(self.kept),
        )


def _over_the_wire(plan: ClientPlan) -> ClientPlan:
    return decode_plan(encode_plan(plan))
