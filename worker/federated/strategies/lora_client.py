"""What strategies with plain LoRA do on a client: load factors, train a round, deliver.

Symbols: y = W x + s B A x with s = lora_alpha / lora_rank, A (r, in_features), B (out_features, r).

On the wire and in the server's state, the factors of all layers of a role are stacked: `A/<role>`
(layers, r, in_features) and `B/<role>` (layers, out_features, r), fp32. **B travels with the
client's scale s in it**, so that `B A` is the update itself, and factors of clients with different
`lora_alpha` or rank mean the same. In the client's own store factors go by module and unscaled.

AdamW's moments belong to a coordinate system. A strategy keeps them where a round goes on from
factors near the ones it left (its own, or an average with others), and drops them where it starts
from unrelated ones (drawn anew, or an SVD basis): there, old moments would scale steps along
directions that no longer exist. A private head goes on in any case.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils import get_peft_model_state_dict
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from backend.contracts.metrics import MetricName
from worker.federated.adapters.export import write_lora
from worker.federated.client_round import (
    Measured,
    Stopwatch,
    before_and_after,
    body_of,
    factor_changes,
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
from worker.federated.errors import UnsupportedModelError
from worker.federated.low_rank import LowRank, factors_of
from worker.federated.memory import peak_memory_bytes
from worker.federated.optimizer import Group
from worker.federated.roles import AdaptedModule, adapted_modules, target_suffixes
from worker.federated.seeds import derive_seed, generator
from worker.federated.strategies.lora_exchange import Letters, factor_specs
from worker.federated.training import Penalty, Phase, num_optimizer_steps, train
from worker.federated.types import ClientPlan, ClientUpdate, LocalClient, Metrics, Progress, Tensors
from worker.federated.wire import TensorSpec, require_tensors

_ADAPTER = "default"


@dataclass(frozen=True, slots=True)
class LoraModel:
    """A client's base model with plain LoRA on every adapted module.

    Attributes:
        adapted: as PEFT sees it.
        modules: by layer, then by role.
        scaling: s.
    """

    adapted: PeftModel
    modules: Sequence[AdaptedModule]
    scaling: float

    @property
    def model(self) -> PreTrainedModel:
        """The base model with the adapter's layers in place."""
        return body_of(self.adapted)

    def factors(self, letters: Letters = "AB") -> dict[str, nn.Parameter]:
        """What may train, as `A/<module>` (r, in_features) and `B/<module>` (out_features, r)."""
        return {
            f"{letter}/{module.name}": self.model.get_parameter(
                f"{module.name}.lora_{letter}.{_ADAPTER}.weight"
            )
            for letter in letters
            for module in self.modules
        }

    def stacked(self, letters: Letters = "AB") -> Tensors:
        """Copies on the CPU as they travel, `A/<role>` and `B/<role>` (with s in it), fp32."""
        parameters = self.factors(letters)
        by_role: dict[str, list[torch.Tensor]] = {}
        for letter in letters:
            for module in self.modules:
                parameter = parameters[f"{letter}/{module.name}"].detach().cpu()
                by_role.setdefault(f"{letter}/{module.role}", []).append(parameter)
        return {
            name: torch.stack(layers) * (self.scaling if name.startswith("B/") else 1.0)
            for name, layers in by_role.items()
        }

    @torch.no_grad()
    def put(self, stacked: Tensors) -> None:
        """Inverse of `stacked`, for all roles of the letters that are given.

        A smaller rank than the model's fills the first rows of A and columns of B; the rest of
        the given factors becomes zero.
        """
        parameters = self.factors()
        for module in self.modules:
            for letter in "AB":
                given = stacked.get(f"{letter}/{module.role}")
                if given is None:
                    continue
                own = given[module.layer] / (self.scaling if letter == "B" else 1.0)
                parameter = parameters[f"{letter}/{module.name}"]
                parameter.zero_()
                parameter[: own.shape[0], : own.shape[1]] = own

    @torch.no_grad()
    def restore(self, known: Tensors, letters: Letters, origin: str) -> None:
        """Puts the client's own factors back, by module; none known: leaves all as it is.

        Args:
            known: as `snapshot(factors(letters))` gave them.
            letters: which factors the client keeps.
            origin: where they come from, for messages.

        Raises:
            InvalidUpdateError: some are missing, unknown, misshaped or not finite.
        """
        if not known:
            return
        factors = self.factors(letters)
        expected = {name: TensorSpec(tuple(factor.shape)) for name, factor in factors.items()}
        require_tensors(known, expected, origin)
        for name, factor in factors.items():
            factor.copy_(known[name])

    @torch.no_grad()
    def add_to_base(self, products: Mapping[str, LowRank]) -> None:
        """W <- W + b a in every layer, in the orientation in which the base layer stores W.

        The sum is rounded once, to the dtype of W.

        Raises:
            UnsupportedModelError: the base weights are quantised.
        """
        for module in self.modules:
            if module.role not in products:
                continue
            layer = self.model.get_submodule(f"{module.name}.base_layer")
            weight = layer.get_parameter("weight")
            if not weight.is_floating_point():
                raise UnsupportedModelError(
                    "This strategy adds what was learned to the base weights, which loses most of "
                    "it where they are quantised: load the base model with quantization 'none', "
                    "or choose a strategy that exchanges factors only, such as fedit."
                )
            product = products[module.role]
            a, b = product.a[module.layer], product.b[module.layer]
            change = b.to(weight.device).float() @ a.to(weight.device).float()
            oriented = change.T if isinstance(layer, Conv1D) else change
            weight.copy_(weight.float() + oriented)


@dataclass(frozen=True, slots=True)
class TrainedLora:
    """What training a round gave, apart from the factors in the model.

    Attributes:
        start: factors that trained, by module, as they were before.
        moments: AdamW's, of factors and head.
        after: the measurement after training, if one was due.
        metrics: of the training.
    """

    start: Tensors
    moments: Tensors
    after: Measured | None
    metrics: Metrics

    @property
    def head_moments(self) -> Tensors:
        """AdamW's moments without those of the factors; see the module's text."""
        return {name: t for name, t in self.moments.items() if name.startswith("head/")}


def load_lora(
    plan: ClientPlan,
    client: LocalClient,
    *,
    rank: int | None = None,
    seed: int | None = None,
) -> LoraModel:
    """Puts LoRA with fresh factors on every adapted module, and the client's own head in place.

    Fresh factors are those that TriLoRA's `random` start draws, so that all strategies begin
    alike: A uniform in +-1/sqrt(in_features), B zero.

    Args:
        plan: of this round.
        client: whose model; it is changed in place.
        rank: of the adapter; None: the client's own. The scale s stays the client's.
        seed: of A; None: the one of run and client, equal in every round.
    """
    client.on_progress(Progress("loading", 0, 1))
    modules = adapted_modules(client.model)
    first = client.model.get_submodule(modules[0].name)
    rank = client.spec.lora_rank if rank is None else rank
    scaling = client.spec.lora_alpha / client.spec.lora_rank
    alpha = client.spec.lora_alpha * rank / client.spec.lora_rank
    config = LoraConfig(
        r=rank,
        lora_alpha=cast(int, int(alpha) if alpha.is_integer() else alpha),
        lora_dropout=client.training.lora_dropout,
        target_modules=target_suffixes(client.model, modules),
        fan_in_fan_out=isinstance(first, Conv1D),
    )
    lora = LoraModel(get_peft_model(client.model, config), modules, scaling)
    load_head(client, store_of(plan))
    seed = derive_seed(plan.seed, plan.client_id, "factors") if seed is None else seed
    factors = lora.factors("A")
    with torch.no_grad():
        for module in modules:
            bound = 1 / math.sqrt(module.in_features)
            fresh = torch.empty(rank, module.in_features)
            fresh.uniform_(-bound, bound, generator=generator(seed, "A", module.name))
            factors[f"A/{module.name}"].copy_(fresh)
    return lora


def load_received(
    plan: ClientPlan, client: LocalClient, *, rank: int | None = None, letters: Letters = "AB"
) -> LoraModel:
    """The client's model with the plan's factors as its adapter; letters not received are fresh.

    Args:
        plan: of this round, with stacked factors.
        client: whose model; it is changed in place.
        rank: of the factors; None: the client's own.
        letters: which factors the plan has.

    Raises:
        InvalidUpdateError: a factor is missing, unknown, misshaped or not finite.
    """
    rank = client.spec.lora_rank if rank is None else rank
    received = received_factors(plan, client, rank, letters)
    lora = load_lora(plan, client, rank=rank)
    lora.put(received)
    return lora


def train_lora(
    plan: ClientPlan,
    client: LocalClient,
    lora: LoraModel,
    watch: Stopwatch,
    *,
    letters: Letters = "AB",
    before: Measured | None = None,
    penalty: Penalty | None = None,
    extra: Sequence[Group] = (),
) -> TrainedLora:
    """Measures, trains the factors (and a head) for one round, and measures again.

    AdamW starts from the moments that the client's store has under `moments`.

    Args:
        plan: of this round.
        client: who trains.
        lora: its model; the factors change in place.
        watch: gets the seconds.
        letters: which factors train; the others are frozen.
        before: a measurement of the loaded model, if there is one already.
        penalty: added to the loss of each step.
        extra: what trains besides factors and head.
    """
    factors = lora.factors(letters)
    start = snapshot(factors)
    with watch.measure(MetricName.SECONDS_LOAD):
        batches = training_batches(plan, client)
    with watch.measure(MetricName.SECONDS_EVALUATE):
        before = before or measure_when_due(lora.model, client, plan.round_number - 1)
    with watch.measure(MetricName.SECONDS_TRAIN):
        group = Group("LoRA", factors, client.training.learning_rate)
        num_steps = num_optimizer_steps(client.training, len(client.data.train))
        trained = train(
            lora.model,
            client.objective,
            [Phase([group, *extra, *head_groups(client)], num_steps, penalty)],
            batches,
            client.training,
            moments=take("moments", client.private),
            seed=derive_seed(plan.seed, plan.client_id, plan.round_number),
            on_progress=client.on_progress,
            checkpointing=client.checkpointing,
            round_number=plan.round_number,
        )
    with watch.measure(MetricName.SECONDS_EVALUATE):
        after = measure_when_due(lora.model, client, plan.round_number)
    metrics = {**before_and_after(before, after), **watch.metrics, **trained.metrics()}
    return TrainedLora(start, trained.moments, after, metrics)


def lora_update(
    plan: ClientPlan,
    client: LocalClient,
    lora: LoraModel,
    trained: TrainedLora,
    *,
    shared: Tensors,
    private: Tensors,
) -> ClientUpdate:
    """A client's update with the metrics that every strategy gives.

    Args:
        plan: of this round.
        client: who trained.
        lora: its model after training.
        trained: what `train_lora` gave.
        shared: what leaves the client. Factors whose letter it has count as shared in the metrics.
        private: what the client keeps besides its head, such as `moments/...`.
    """
    now = snapshot(lora.factors())
    letters = {name.partition("/")[0] for name in shared}
    sent = {name: t for name, t in trained.start.items() if name.partition("/")[0] in letters}
    kept = {name: t for name, t in trained.start.items() if name not in sent}
    metrics: Metrics = {
        **trained.metrics,
        **traffic(shared, plan),
        **factor_changes(trained.start, now),
        MetricName.NUM_EXAMPLES: float(len(client.data.train)),
        MetricName.BYTES_LORA: float(lora_bytes(client.spec)),
        MetricName.PEAK_MEMORY_BYTES: float(peak_memory_bytes(lora.model.device)),
    }
    if sent:
        metrics[MetricName.SHARED_CHANGE] = relative_change(sent, now)
    if kept:
        metrics[MetricName.PRIVATE_CHANGE] = relative_change(kept, now)
    return ClientUpdate(
        client_id=plan.client_id,
        round_number=plan.round_number,
        num_examples=len(client.data.train),
        shared=shared,
        private={**private, **kept_head(client)},
        metrics=metrics,
    )


def load_products(
    plan: ClientPlan, client: LocalClient, products: Mapping[str, LowRank]
) -> LoraModel:
    """A client's model with given updates as its adapter, of the rank that the largest one needs.

    This is how strategies deliver: what is measured is what is written, whatever the base model's
    storage or dtype, because nothing is added to its weights. Of no updates comes an adapter that
    changes nothing.
    """
    rank = max((product.rank for product in products.values()), default=0)
    lora = load_lora(plan, client, rank=max(rank, 1))
    lora.put(factors_of(products))
    return lora


def deliver_lora(client: LocalClient, lora: LoraModel, folder: Path) -> Metrics:
    """Measures the adapter as it is in the model and writes it."""
    accuracy = measure(lora.model, client).accuracy
    write_delivered(client, lora, folder)
    return {MetricName.ACCURACY_DELIVERED: accuracy}


def write_delivered(client: LocalClient, lora: LoraModel, folder: Path) -> None:
    """Writes the adapter as it is in the model for stock PEFT, with the head."""
    client.on_progress(Progress("exporting", 0, 1))
    tensors = get_peft_model_state_dict(lora.adapted, save_embedding_layers=False)
    write_lora(folder, cast(LoraConfig, lora.adapted.peft_config[_ADAPTER]), tensors)
    client.objective.save_head(folder)


def received_factors(
    plan: ClientPlan, client: LocalClient, rank: int, letters: Letters = "AB"
) -> Tensors:
    """The stacked factors of a plan, after checking that they fit the client's model.

    Raises:
        InvalidUpdateError: a factor is missing, unknown, misshaped or not finite.
    """
    expected = factor_specs(client.spec, rank, letters)
    tensors = {name: t for name, t in plan.tensors.items() if name[:2] in {"A/", "B/"}}
    require_tensors(tensors, expected, f"the plan of client {plan.client_id!r}")
    return tensors


def store_of(plan: ClientPlan) -> str:
    """Names a client's own store, for messages."""
    return f"the store of client {plan.client_id!r}"
