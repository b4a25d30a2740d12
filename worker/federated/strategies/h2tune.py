"""H2Tune: clients of any depth, width, rank and task share one small matrix per slot and role.

Idea. Every adapted layer computes W x + (alpha / r) B (I + T) A x. The factors A and B are private;
the middle matrices T are cut from R x R matrices S that all clients share, through a sparse mask
(its size follows from the client's rank) and a private alignment P that maps the client's layers
to the L* slots of the common stack. In each round a client first trains T and P with A and B
frozen, then A and B with T frozen; the first round trains all, since with B = 0 nothing else has a
gradient.

Reference: Guo et al., H2Tune, ECAI 2025, arXiv 2507.22633. This is our implementation: the code
published with the paper carries no learned information between clients, so several choices are ours
and named here.
 1. Aggregation adds changes (`delta`), S <- S + eta sum_i p_i up(M_i * D_i) / sum_i p_i h_i, where
    h_i marks the entries of the slots that client i holds. A mean of the matrices (`mean`, as
    published) shrinks S in every round in which nobody learns.
 2. Alignments have orthonormal columns, so that down(up(T)) = T.
 3. Masks belong to a role, not to a layer, and start nested: what leaves a client keeps its
    sparsity through the alignment, and P never has to leave for it.

Leaves the client: the held entries of one matrix per slot and role, the mask until it is fixed, and
how much of each slot the client's layers fill (L* numbers). Never leaves: data, base model, A, B, P
and the optimizer's state. Symbols and shapes: `h2tune_client`.

Bytes of values per round and direction: 4 L* m k for m roles and k held entries (k = r^2 by
default); masks: min(n / 8, 2 s) per role for s of n positions.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import torch

from backend.contracts.enums import RoundKind
from backend.contracts.h2tune_defaults import Gauge, exchanges_codes, gauge_for, settled
from backend.contracts.metrics import MetricName
from backend.contracts.params.h2tune import H2TuneParams
from worker.federated.adapters import export_lora
from worker.federated.adapters.geometry import Geometry, make_geometry
from worker.federated.client_round import (
    Stopwatch,
    before_and_after,
    below,
    factor_changes,
    kept_head,
    load_head,
    lora_bytes,
    measure,
    measure_when_due,
    relative_change,
    snapshot,
    take,
    traffic,
    training_batches,
)
from worker.federated.errors import InvalidConfigError
from worker.federated.memory import peak_memory_bytes
from worker.federated.seeds import derive_seed, generator
from worker.federated.strategies.guard import still_kept
from worker.federated.strategies.h2tune_alone import AloneAggregation
from worker.federated.strategies.h2tune_client import ClientModel, mask_churn
from worker.federated.strategies.h2tune_exchange import (
    agree,
    gauge_plans,
    has_codes,
    read_probes,
    require_enough,
)
from worker.federated.strategies.h2tune_gauge import client_factors, federation_codes
from worker.federated.strategies.h2tune_guard import current_state, serve_shared
from worker.federated.strategies.h2tune_relevance import RelevanceAggregation
from worker.federated.strategies.h2tune_server import Aggregation
from worker.federated.strategies.h2tune_training import Training
from worker.federated.strategies.probe_texts import (
    can_be_probed,
    federation_texts,
    gauge_of,
    own_texts,
    task_kinds,
)
from worker.federated.training import train
from worker.federated.types import (
    AggregationReport,
    ClientPlan,
    ClientSpec,
    ClientUpdate,
    FederationSpec,
    LocalClient,
    Metrics,
    Progress,
    Refusal,
    ServerState,
    Tensors,
)
from worker.federated.wire import pack_entries, unpack_mask

START_NORM = 0.1
"""Scale of the first slots: entries N(0, (START_NORM / sqrt(R))^2), spectral norm about twice it.

Small against the identity, so that a fresh adapter behaves like a LoRA, but not zero: with S = 0
neither the alignment nor the mask would get a gradient in the first round.
"""

Preset = Literal["h2tune", "h2tune-paper", "h2tune-code"]


def preset(name: Preset) -> H2TuneParams:
    """Named parameter sets; all are our implementation, none reproduces published tables.

    `h2tune`: our defaults. `h2tune-paper`: as the paper's text describes it (free mask, plain mean,
    phases once per round, both divergences). `h2tune-code`: as the published code is laid out
    (gathered entries, random alignment, phases in turn at every step).
    """
    published: dict[str, Any] = {
        "aggregation": "mean",
        "anchor": "kl",
        "distillation_weight": 1.0,
        "gauge": "none",
        "joint_rounds": 1,
        "mask_warmup_rounds": 1,
        "shared_fraction": 0.5,
        "train_alignment": True,
    }
    match name:
        case "h2tune":
            return H2TuneParams()
        case "h2tune-paper":
            return H2TuneParams(layout="mask", granularity="round", **published)
        case "h2tune-code":
            return H2TuneParams(
                layout="gather", granularity="step", alignment_init="random", **published
            )


class H2Tune:
    """See the module's text."""

    def __init__(self, params: H2TuneParams) -> None:
        self.params = params

    def check(self, federation: FederationSpec) -> list[Refusal]:
        """Refuses clients whose rank does not fit, or whose depth forbids an identity alignment."""
        refusals = []
        gauge = self._gauge(federation)
        for client in federation.clients:
            num_layers = client.architecture.num_layers
            try:
                self._geometry(federation.global_rank, client)
            except InvalidConfigError as error:
                refusals.append(Refusal(client.client_id, f"Client {client.name!r}: {error}"))
                continue
            if gauge == "probe" and not can_be_probed(client.task):
                refusals.append(
                    Refusal(
                        client.client_id,
                        f"Client {client.name!r} has a task of kind {client.task.value!r}, whose "
                        "model reads no probe texts, and gauge is 'probe': choose another gauge.",
                    )
                )
            if self.params.alignment_init == "identity" and num_layers != federation.num_slots:
                refusals.append(
                    Refusal(
                        client.client_id,
                        f"Client {client.name!r} has {num_layers} layers but the deepest client "
                        f"{federation.num_slots}, and alignment_init is 'identity': choose "
                        "'interpolation'.",
                    )
                )
        return refusals

    def init_state(self, federation: FederationSpec, seed: int) -> ServerState:
        """Small random slots for every role that any client has; zeros with gauged factors."""
        rank = federation.global_rank
        probed = self._gauge(federation) == "probe"
        scale = 0.0 if probed else START_NORM / rank**0.5
        roles = sorted({role for client in federation.clients for role in client.modules})
        state = ServerState(
            tensors={
                f"slots/{role}": torch.randn(
                    federation.num_slots, rank, rank, generator=generator(seed, "slots", role)
                )
                * scale
                for role in roles
            },
            meta={"seed": seed},
        )
        if not probed:
            return state
        codes: Tensors = {}
        if self._exchanges(federation):
            require_enough(len(federation_texts(federation)), rank)
        else:
            codes = {"codes": federation_codes(federation)}
        return ServerState(
            tensors={**state.tensors, **own_texts(federation), **codes},
            meta={**state.meta, "probe_kinds": task_kinds(federation)},
        )

    def configure_round(
        self, state: ServerState, federation: FederationSpec, round_number: int, *, deliver: bool
    ) -> dict[str, ClientPlan]:
        """The slots for every client: only the entries it holds, once its mask is fixed.

        Before clients that exchange codes have agreed on them: the probe texts.
        """
        if self._exchanges(federation) and not has_codes(state):
            return gauge_plans(state, federation, state.meta["probe_kinds"])
        plans = {}
        params = settled(self.params, self._gauge(federation))
        for client in federation.clients:
            masks = take(f"mask/{client.client_id}", state.tensors)
            learns_mask = round_number <= params.mask_warmup_rounds and not deliver
            plans[client.client_id] = ClientPlan(
                client_id=client.client_id,
                round_number=round_number,
                kind=RoundKind.DELIVER if deliver else RoundKind.TRAIN,
                seed=state.meta["seed"],
                global_rank=federation.global_rank,
                num_slots=federation.num_slots,
                tensors={
                    **self._slots(state, federation, client, {} if learns_mask else masks),
                    **({} if masks else gauge_of(state, client)),
                },
                settings={
                    "probe_kinds": state.meta.get("probe_kinds", []),
                    "train_mask": learns_mask,
                    "send_mask": learns_mask or not masks,
                    "joint": round_number <= (params.joint_rounds or 0),
                    "gauge": params.gauge,
                },
            )
        return plans

    def train_client(self, plan: ClientPlan, client: LocalClient) -> ClientUpdate:
        """One round: load, measure, train the phases, measure, and cut out what is shared.

        In the round before the first: what the base model makes of the probe texts.
        """
        if plan.kind is RoundKind.GAUGE:
            return read_probes(plan, client, self.params.writing)
        watch = Stopwatch()
        with watch.measure(MetricName.SECONDS_LOAD):
            braid = self._load(plan, client)
            batches = training_batches(plan, client)
            factors, middles, masks = snapshot(braid.factors()), braid.held_middles(), braid.masks()
            guarded = self.params.guard == "validation"
            received = current_state(braid, client) if guarded else {}
        with watch.measure(MetricName.SECONDS_EVALUATE):
            before = measure_when_due(braid.model, client, plan.round_number - 1)
        with watch.measure(MetricName.SECONDS_TRAIN):
            # A client that missed the joint rounds has B = 0, and so no gradient for anything else.
            catches_up = client.private is None and bool(braid.params.joint_rounds)
            trained = train(
                braid.model,
                client.objective,
                Training(braid, plan, client).phases(joint=plan.settings["joint"] or catches_up),
                batches,
                client.training,
                moments=take("moments", client.private),
                seed=derive_seed(plan.seed, plan.client_id, plan.round_number),
                on_progress=client.on_progress,
                checkpointing=client.checkpointing,
                round_number=plan.round_number,
            )
        with watch.measure(MetricName.SECONDS_EVALUATE):
            after = measure_when_due(braid.model, client, plan.round_number)
        shared = braid.shared(with_masks=plan.settings["send_mask"])
        metrics: Metrics = {
            **before_and_after(before, after),
            **watch.metrics,
            **trained.metrics(),
            **braid.alignment_metrics(),
            MetricName.SPARSITY: braid.sparsity(),
            **traffic(shared, plan),
            MetricName.NUM_EXAMPLES: float(len(client.data.train)),
            MetricName.SHARED_DRIFT: braid.drift(shared),
            MetricName.BYTES_LORA: float(lora_bytes(client.spec)),
            MetricName.PEAK_MEMORY_BYTES: float(peak_memory_bytes(braid.model.device)),
            **factor_changes(factors, braid.factors()),
            MetricName.PRIVATE_CHANGE: relative_change(factors, braid.factors()),
            MetricName.SHARED_CHANGE: relative_change(middles, braid.held_middles()),
            MetricName.MASK_CHURN: mask_churn(masks, braid.masks()),
        }
        moments = below("moments", trained.moments)
        private = {**braid.private(), **kept_head(client), **moments}
        if guarded:
            private |= still_kept(client.private, metrics, received, current_state(braid, client))
        return ClientUpdate(
            client_id=plan.client_id,
            round_number=plan.round_number,
            num_examples=len(client.data.train),
            shared=shared,
            private=private,
            metrics=metrics,
        )

    def deliver_client(self, plan: ClientPlan, client: LocalClient, folder: Path) -> Metrics:
        """Joins the final slots with the client's own factors into a plain LoRA adapter."""
        braid = self._load(plan, client)
        if self.params.guard == "validation":
            metrics = serve_shared(braid, client)
        else:
            metrics = {MetricName.ACCURACY_DELIVERED: measure(braid.model, client).accuracy}
        client.on_progress(Progress("exporting", 0, 1))
        export_lora(braid.adapted, folder)
        client.objective.save_head(folder)
        return {**metrics, MetricName.SPARSITY: braid.sparsity()}

    def aggregate(
        self, state: ServerState, federation: FederationSpec, updates: Iterable[ClientUpdate]
    ) -> tuple[ServerState, AggregationReport]:
        """The next slots from the clients' matrices, weighted by their numbers of examples.

        Before there are codes: the codes, from what clients made of the probe texts. Refuses, with
        `InvalidUpdateError`, tensors that do not fit their sender.
        """
        if self._exchanges(federation) and not has_codes(state):
            num_probes = len(federation_texts(federation))
            return agree(state, federation, updates, num_probes, self.params.writing)
        aggregation = self._aggregation(state, federation)
        for update in updates:
            aggregation.add(update)
        return aggregation.result()

    def _gauge(self, federation: FederationSpec) -> Gauge:
        return gauge_for(self.params, (client.task for client in federation.clients))

    def _aggregation(
        self, state: ServerState, federation: FederationSpec
    ) -> Aggregation | AloneAggregation:
        if self.params.control == "alone":
            return AloneAggregation(self.params, state, federation)
        personal = self.params.aggregation == "relevance"
        kind = RelevanceAggregation if personal else Aggregation
        return kind(self.params, state, federation)

    def _exchanges(self, federation: FederationSpec) -> bool:
        return exchanges_codes(self.params, (client.task for client in federation.clients))

    def _geometry(self, global_rank: int, client: ClientSpec) -> Geometry:
        return make_geometry(
            self.params.layout, client.lora_rank, global_rank, self.params.sparsity
        )

    def _slots(
        self, state: ServerState, federation: FederationSpec, client: ClientSpec, masks: Tensors
    ) -> Tensors:
        common, own = take("slots", state.tensors), take(f"own/{client.client_id}", state.tensors)
        slots = {role: own.get(role, common[role]) for role in client.modules}
        if not masks:
            return {f"slots/{role}": matrix for role, matrix in slots.items()}
        geometry = self._geometry(federation.global_rank, client)
        tensors: Tensors = {}
        for role in client.modules:
            selected = unpack_mask(
                masks[role], geometry.num_selectable, geometry.num_selected, "the server state"
            )
            held = geometry.held_entries(selected)
            tensors[f"mask/{role}"] = masks[role]
            tensors[f"values/{role}"] = pack_entries(slots[role], held)
        return tensors

    def _load(self, plan: ClientPlan, client: LocalClient) -> ClientModel:
        client.on_progress(Progress("loading", 0, 1))
        private = client.private
        params = settled(self.params, plan.settings["gauge"])
        if params.gauge == "probe" and not take("factors", private):
            private = {**(private or {}), **client_factors(plan, client, params)}
        braid = ClientModel(params, plan, client)
        origin = f"the store of client {plan.client_id!r}"
        braid.load_private(private, origin)
        load_head(client, origin)
        braid.load_plan(plan)
        return braid
