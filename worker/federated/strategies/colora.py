"""Co-LoRA (as in FedMosaic): every client gets its own mixture of what related clients learned.

Idea. Between frozen factors A and B that mean the same in every model, a small module (P, q) is
all that is learned together; it sits at the ends of a few blocks only, at equal relative depth, so
depth and width do not matter. Clients send their modules with a sketch of their gradient, and
each gets back the others' modules weighted by how alike the sketches are, itself excluded. Clients
of the same model also get the sum of each other's whole LoRAs, weighted in the same way. Every
client keeps a local LoRA of its own, and gates learn how much of what was received to use.

Reference: Co-LoRA / FedMosaic, ICLR 2026 (our implementation of its published description).
Deviations, with reasons:
 1. A and B are aligned by the probe gauge of H2Tune (public prompts made on every machine), not by
    a separate optimisation on public data. B is not zero, so P starts at zero and not at I: a
    fresh adapter changes nothing.
 2. The client's own module stays a part of its function (P + gate x received), so a client that
    is alone keeps its own function.
 3. The sketch is the gradient by P at the last block end, whose coordinates clients share.
 4. q is an option (`offset`), off by default: it is a bias, and a plain LoRA has none. With it the
    export uses PEFT's `lora_bias`, exact in PEFT, but it cannot be merged where the base model has
    no biases, and other servers may not read it.
 5. The LoRAs of a group are added up exactly, as one LoRA of the sum of their ranks, instead of
    averaging A and B apart (`colora_groups`); the receiver adds gate x received to its own LoRA and
    does not blend the two, so its own function stays whole. `share_lora: never` leaves it out.

Leaves the client: P (and q) per block end and role, one noised gradient sketch per role; to a
server that has other clients of the same model also the factors A_l and B_l of the local LoRA.
Never leaves: data, base model, A, B, gates, moments, and without such clients the LoRA.
Bytes of values per round for m roles: up 4 m (N_B (R^2 [+ R]) + R^2), down 4 m N_B (R^2 [+ R]), and
the codes once; in a group of n clients also 4 L r sum_k (in_k + out_k) up, and n - 1 times that
down (with at most min(in_k, out_k) in the place of (n - 1) r). A client alone in its group sends,
trains and receives as with `share_lora: never`. Weights depend on the data, so aggregation is not
linear. Symbols and shapes: `colora_client`, `colora_received`, `colora_mixing`, `colora_groups`.
"""

import dataclasses
from collections.abc import Collection, Iterable
from pathlib import Path

import torch

from backend.contracts.metrics import MetricName
from backend.contracts.params.colora import CoLoraParams
from worker.federated.client_round import (
    Stopwatch,
    below,
    measure,
    relative_change,
    snapshot,
    take,
)
from worker.federated.compatibility import refuse_unequal
from worker.federated.optimizer import Group
from worker.federated.strategies.colora_client import ClientModel, module_specs
from worker.federated.strategies.colora_groups import group_members, lora_mixture
from worker.federated.strategies.colora_mixing import by_client, cosine, mixing_weights, mixture
from worker.federated.strategies.h2tune_gauge import federation_codes
from worker.federated.strategies.lora_client import lora_update, train_lora
from worker.federated.strategies.lora_exchange import accepted, factor_specs, make_plans
from worker.federated.strategies.probe_texts import (
    can_be_probed,
    gauge_of,
    own_texts,
    task_kinds,
)
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
from worker.federated.wire import TensorSpec

_KINDS = {"sketch": "sketch", "A": "lora", "B": "lora"}
"""Where the server keeps what was sent, by the first part of its name; modules are the rest."""


class CoLora:
    """See the module's text."""

    def __init__(self, params: CoLoraParams) -> None:
        self.params = params

    def check(self, federation: FederationSpec) -> list[Refusal]:
        """Refuses clients whose models read no probe texts, with the probe gauge."""
        return [
            *refuse_unequal(self.params, federation),
            *(
                Refusal(
                    client.client_id,
                    f"Client {client.name!r} has a task of kind {client.task.value!r}, whose model "
                    "reads no probe texts, and gauge is 'probe': choose gauge 'orthonormal'.",
                )
                for client in federation.clients
                if self.params.gauge == "probe" and not can_be_probed(client.task)
            ),
        ]

    def init_state(self, federation: FederationSpec, seed: int) -> ServerState:
        """Nothing learned yet; the codes of the public prompts, with the probe gauge."""
        if self.params.gauge != "probe":
            return ServerState({}, {"seed": seed, "probe_kinds": []})
        codes = {**own_texts(federation), "codes": federation_codes(federation)}
        return ServerState(codes, {"seed": seed, "probe_kinds": task_kinds(federation)})

    def configure_round(
        self, state: ServerState, federation: FederationSpec, round_number: int, *, deliver: bool
    ) -> dict[str, ClientPlan]:
        """For every client the others' modules in its own mixture; the codes until it has sent."""
        modules = by_client("module", state.tensors)
        sketches = by_client("sketch", state.tensors)
        groups = group_members(federation)

        def personal(client: ClientSpec) -> Tensors:
            weights = mixing_weights(sketches, client.client_id, self.params.temperature)
            mixed = mixture(modules, weights)
            own = {name: t for name, t in mixed.items() if name[2:] in client.modules}
            own |= below("lora", self._group_lora(state, client, groups[client.client_id]))
            return own if client.client_id in modules else {**own, **gauge_of(state, client)}

        settings = {
            "probe_kinds": state.meta["probe_kinds"],
            "num_blocks": self._num_blocks(federation),
        }
        plans = make_plans(state, federation, round_number, deliver=deliver, tensors=personal)
        return {
            client_id: dataclasses.replace(
                plan, settings={**settings, "shares_lora": self._shares_lora(groups[client_id])}
            )
            for client_id, plan in plans.items()
        }

    def train_client(self, plan: ClientPlan, client: LocalClient) -> ClientUpdate:
        """Sketches the gradient, trains local LoRA, module and gate together, and sends."""
        watch = Stopwatch()
        with watch.measure(MetricName.SECONDS_LOAD):
            model = self._load(plan, client)
            start = snapshot(model.trained())
        with watch.measure(MetricName.SECONDS_TRAIN):
            sketch = below("sketch", model.sketch(plan, client))
        rate = self.params.shared_learning_rate or client.training.learning_rate
        groups = [Group("shared", model.trained(), rate)]
        if model.received:
            groups.append(Group("gate", model.gates(), rate))
        trained = train_lora(plan, client, model.lora, watch, extra=groups)
        private = {**model.private(), **below("moments", trained.moments)}
        shared = {**model.shared(), **sketch}
        update = lora_update(plan, client, model.lora, trained, shared=shared, private=private)
        now = snapshot(model.trained())
        if model.received:
            start, now = {**start, **trained.start}, {**now, **snapshot(model.lora.factors())}
        change = relative_change(start, now)
        metrics = {**update.metrics, MetricName.SHARED_CHANGE: change}
        return dataclasses.replace(update, metrics=metrics)

    def deliver_client(self, plan: ClientPlan, client: LocalClient, folder: Path) -> Metrics:
        """Writes local LoRA, own module and what was received last as one LoRA adapter."""
        model = self._load(plan, client)
        accuracy = measure(model.lora.model, client).accuracy
        client.on_progress(Progress("exporting", 0, 1))
        model.save(folder)
        client.objective.save_head(folder)
        return {MetricName.ACCURACY_DELIVERED: accuracy}

    def aggregate(
        self, state: ServerState, federation: FederationSpec, updates: Iterable[ClientUpdate]
    ) -> tuple[ServerState, AggregationReport]:
        """Keeps everybody's newest module and sketch; reports who will take how much from whom.

        Raises:
            InvalidUpdateError: an update does not fit its sender.
        """
        tensors, num_clients = dict(state.tensors), 0
        for client, update in accepted(
            updates, federation, lambda c, _: self._expected(c, federation)
        ):
            for name, tensor in update.shared.items():
                kind = _KINDS.get(name.partition("/")[0], "module")
                place = name.removeprefix("sketch/")
                tensors[f"{kind}/{client.client_id}/{place}"] = tensor
            num_clients += 1
        before, after = take("module", state.tensors), take("module", tensors)
        zeros = {name: torch.zeros_like(tensor) for name, tensor in after.items()}
        values = {
            "relative_change": relative_change({**zeros, **before}, after),
            **self._mixing(by_client("sketch", tensors)),
        }
        return ServerState(tensors, state.meta), AggregationReport(num_clients, values)

    def _mixing(self, sketches: dict[str, Tensors]) -> dict[str, float]:
        """`mixing_weight/<receiver>/<source>` of all pairs, and the mean cosine behind them."""
        values, cosines = {}, []
        for receiver in sketches:
            weights = mixing_weights(sketches, receiver, self.params.temperature)
            for source, weight in weights.items():
                values[f"mixing_weight/{receiver}/{source}"] = weight
                cosines.append(cosine(sketches[receiver], sketches[source]))
        if cosines:
            values["sketch_cosine"] = sum(cosines) / len(cosines)
        return values

    def _expected(self, client: ClientSpec, federation: FederationSpec) -> dict[str, TensorSpec]:
        rank = federation.global_rank
        sketches = {f"sketch/{role}": TensorSpec((rank, rank)) for role in client.modules}
        modules = module_specs(self.params, client, self._num_blocks(federation), rank)
        shares_lora = self._shares_lora(group_members(federation)[client.client_id])
        factors = factor_specs(client, client.lora_rank) if shares_lora else {}
        return {**modules, **sketches, **factors}

    def _shares_lora(self, group: Collection[str]) -> bool:
        """Whether the members of this group send their LoRA factors to each other."""
        return self.params.share_lora == "same_model" and len(group) > 1

    def _group_lora(
        self, state: ServerState, client: ClientSpec, group: Collection[str]
    ) -> Tensors:
        """What a client receives of the others in its group; empty before anybody has sent."""
        if not self._shares_lora(group):
            return {}
        loras, sketches = (
            {
                name: tensors
                for name, tensors in by_client(kind, state.tensors).items()
                if name in group
            }
            for kind in ("lora", "sketch")
        )
        weights = mixing_weights(sketches, client.client_id, self.params.temperature)
        return lora_mixture(loras, weights)

    def _num_blocks(self, federation: FederationSpec) -> int:
        """N_B: no more than the shallowest client has layers."""
        shallowest = min(client.architecture.num_layers for client in federation.clients)
        return min(self.params.num_blocks, shallowest)

    def _load(self, plan: ClientPlan, client: LocalClient) -> ClientModel:
        model = ClientModel(self.params, plan, client)
        model.load(plan, client)
        return model
