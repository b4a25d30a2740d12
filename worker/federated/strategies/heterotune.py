"""HeteroTune (reconstructed): clients of any depth and width share small branches between adapters.

Idea. After every block of every model sits an adapter whose way down (D) and up (U) is private and
fits the model's width, while the kappa x kappa branches in the middle are shared: slot l of the
common stack has beta branches, a layer uses the slot at its relative depth, and a client of rank r
holds the first ceil(beta r / R) of them. The server averages each branch over those who hold it,
after it took out what points against the common direction.

    h <- h + U phi(sum_b g_b F_b D h)

Reference: Jia et al., arXiv 2411.16796, of which only the abstracts are known: FedAdapter with
multi-branch aggregation (v1), a dense mixture of adapters (DeMA) and cross-model gradient alignment
(CMGA, v2). What lies between the words is ours, hence "reconstructed":
 1. `variant: fedadapter` weighs branches by learned scalars, `dema` by softmax(G D h) per token.
    The gate sees one token and not the mean over all, since a mean would depend on padding and
    would let a causal model look ahead.
 2. All branches are kappa x kappa; clients of different capacity hold different numbers of them.
 3. What travels are changes, so that an idle round changes nothing; CMGA works on them per branch
    and slot (`worker.federated.cmga`).

Leaves the client: how its branches changed. Never leaves: data, base model, D, U, gates, moments.
Bytes of values per round and direction: 4 L_i beta_i kappa^2. Aggregation is linear without CMGA
only. What is delivered is no LoRA: phi is nonlinear, and even without phi the adapter acts on a
block's whole output, which no linear layer makes alone. Symbols and shapes: `heterotune_client`.
"""

from collections.abc import Iterable
from pathlib import Path

import torch

from backend.contracts.metrics import MetricName
from backend.contracts.params.heterotune import HeteroTuneParams
from worker.federated.adapters.fedadapter_layer import start_branches
from worker.federated.blocks import slot_of
from worker.federated.client_round import (
    Stopwatch,
    before_and_after,
    below,
    head_groups,
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
from worker.federated.cmga import ChangeMean
from worker.federated.compatibility import refuse_unequal
from worker.federated.memory import peak_memory_bytes
from worker.federated.seeds import derive_seed, generator
from worker.federated.strategies.heterotune_client import ClientModel, branch_specs
from worker.federated.strategies.lora_exchange import accepted, make_plans
from worker.federated.training import Phase, num_optimizer_steps, train
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
)
from worker.federated.wire import require_finite


class HeteroTune:
    """See the module's text."""

    def __init__(self, params: HeteroTuneParams) -> None:
        self.params = params

    def check(self, federation: FederationSpec) -> list[Refusal]:
        """Refuses clients whose rank exceeds the global one, of which tiers are shares."""
        return [
            *refuse_unequal(self.params, federation),
            *(
                Refusal(
                    client.client_id,
                    f"Client {client.name!r}: lora_rank is {client.lora_rank} but global_rank is "
                    f"{federation.global_rank}: lower the rank, or raise the global rank.",
                )
                for client in federation.clients
                if client.lora_rank > federation.global_rank
            ),
        ]

    def init_state(self, federation: FederationSpec, seed: int) -> ServerState:
        """Branches near the identity for every slot, (L*, beta, kappa, kappa)."""
        branches = [
            start_branches(seed, slot, self.params.num_branches, self.params.bottleneck)
            for slot in range(federation.num_slots)
        ]
        return ServerState(tensors={"branches": torch.stack(branches)}, meta={"seed": seed})

    def configure_round(
        self, state: ServerState, federation: FederationSpec, round_number: int, *, deliver: bool
    ) -> dict[str, ClientPlan]:
        """For every client the branches that it holds, at the slots of its layers."""

        def held(client: ClientSpec) -> dict[str, torch.Tensor]:
            _, number, *_ = branch_specs(self.params, client, federation.global_rank)[
                "branches"
            ].shape
            chosen = state.tensors["branches"][slots_of(client, federation.num_slots), :number]
            return {"branches": chosen.contiguous()}

        return make_plans(state, federation, round_number, deliver=deliver, tensors=held)

    def train_client(self, plan: ClientPlan, client: LocalClient) -> ClientUpdate:
        """One round: load, measure, train all parts together, measure."""
        watch = Stopwatch()
        with watch.measure(MetricName.SECONDS_LOAD):
            model = self._load(plan, client)
            batches = training_batches(plan, client)
            branches, factors = snapshot(model.branches()), snapshot(model.factors())
        with watch.measure(MetricName.SECONDS_EVALUATE):
            before = measure_when_due(model.model, client, plan.round_number - 1)
        with watch.measure(MetricName.SECONDS_TRAIN):
            num_steps = num_optimizer_steps(client.training, len(client.data.train))
            trained = train(
                model.model,
                client.objective,
                [Phase([*model.groups(client), *head_groups(client)], num_steps)],
                batches,
                client.training,
                moments=take("moments", client.private),
                seed=derive_seed(plan.seed, plan.client_id, plan.round_number),
                on_progress=client.on_progress,
                checkpointing=client.checkpointing,
                round_number=plan.round_number,
            )
        with watch.measure(MetricName.SECONDS_EVALUATE):
            after = measure_when_due(model.model, client, plan.round_number)
        shared = model.shared(plan)
        change = relative_change(branches, model.branches())
        metrics: Metrics = {
            **before_and_after(before, after),
            **watch.metrics,
            **trained.metrics(),
            **traffic(shared, plan),
            MetricName.NUM_EXAMPLES: float(len(client.data.train)),
            MetricName.BYTES_LORA: float(lora_bytes(client.spec)),
            MetricName.PEAK_MEMORY_BYTES: float(peak_memory_bytes(model.model.device)),
            MetricName.PRIVATE_CHANGE: relative_change(factors, model.factors()),
            MetricName.SHARED_CHANGE: change,
            MetricName.SHARED_DRIFT: change,  # what is received and sent lies in the same place
        }
        return ClientUpdate(
            client_id=plan.client_id,
            round_number=plan.round_number,
            num_examples=len(client.data.train),
            shared=shared,
            private={
                **below("factors", snapshot(model.factors())),
                **kept_head(client),
                **below("moments", trained.moments),
            },
            metrics=metrics,
        )

    def deliver_client(self, plan: ClientPlan, client: LocalClient, folder: Path) -> Metrics:
        """Writes the final branches with the client's own parts as a FedAdapter (see the text)."""
        model = self._load(plan, client)
        accuracy = measure(model.model, client).accuracy
        client.on_progress(Progress("exporting", 0, 1))
        model.save(folder)
        client.objective.save_head(folder)
        return {MetricName.ACCURACY_DELIVERED: accuracy}

    def aggregate(
        self, state: ServerState, federation: FederationSpec, updates: Iterable[ClientUpdate]
    ) -> tuple[ServerState, AggregationReport]:
        """F <- F + eta mean(change), each branch over its holders, by numbers of examples.

        Raises:
            InvalidUpdateError: an update does not fit its sender, or the result is not finite.
        """
        old = state.tensors["branches"].double()
        mean = ChangeMean(self.params.conflict)
        direction, num_clients, number = torch.zeros_like(old), 0, 0
        for client, update in accepted(
            updates, federation, lambda c, _: branch_specs(self.params, c, federation.global_rank)
        ):
            change, held = torch.zeros_like(old), torch.zeros_like(old)
            sent = update.shared["branches"].double()
            slots = slots_of(client, federation.num_slots)
            change[slots, : sent.shape[1]] = sent
            held[slots, : sent.shape[1]] = 1.0
            mean.add(_by_branch(change), _by_branch(held), update.num_examples)
            direction += sent.norm() and change / sent.norm()
            num_clients, number = num_clients + 1, update.round_number
        found, resolved = mean.result()
        change = self._under_control(found, state.meta["seed"], number).view_as(old)
        new = (old + self.params.server_learning_rate * change).float()
        require_finite({"branches": new}, "the aggregated state")
        values = {"relative_change": float((new - old).norm() / old.norm())}
        if num_clients > 1:
            # |sum of unit vectors|^2 = N + 2 sum over pairs of their cosine.
            joint = float(direction.pow(2).sum())
            values["update_cosine"] = (joint - num_clients) / (num_clients * (num_clients - 1))
        if resolved is not None:
            values["conflict_rate"] = resolved.conflict_rate
        next_state = ServerState(tensors={"branches": new}, meta=dict(state.meta))
        return next_state, AggregationReport(num_clients, values)

    def _under_control(self, change: torch.Tensor, seed: int, number: int) -> torch.Tensor:
        """The change as it is, or with the entries of each branch shuffled (negative control)."""
        if self.params.control == "none":
            return change
        source = generator(seed, "control", number)
        return change.gather(1, torch.rand(change.shape, generator=source).argsort(dim=1))

    def _load(self, plan: ClientPlan, client: LocalClient) -> ClientModel:
        client.on_progress(Progress("loading", 0, 1))
        model = ClientModel(self.params, plan, client)
        model.load(plan, client)
        load_head(client, f"the store of client {plan.client_id!r}")
        return model


def slots_of(client: ClientSpec, num_slots: int) -> list[int]:
    """Slot of each of a client's layers, ascending and all different."""
    num_layers = client.architecture.num_layers
    return [slot_of(layer, num_layers, num_slots) for layer in range(num_layers)]


def _by_branch(tensor: torch.Tensor) -> torch.Tensor:
    """(L*, beta, kappa, kappa) -> (units, entries): a unit is one branch of one slot."""
    return tensor.flatten(2).flatten(0, 1)
