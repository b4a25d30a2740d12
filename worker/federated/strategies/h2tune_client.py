"""H2Tune on the client's side: a model around the shared middle matrices, and how it trains.

For layer j and module role k, with slots S fixed and all else in the graph:

    T°_jk = sum_l P[l, j] S[l, k] + D_jk,   T = M * T°,   y = W x + (alpha / r) B (I + T) A x

| Symbol | Shape | Where it lives |
|---|---|---|
| S slots | (L*, R, R) per role | server; arrives every round |
| D change | (R, R) per layer and role | zero at the start of a round; what the round adds |
| P alignment | (L*, L) | private |
| C scores, M mask | (R,) or (R, R) per role | C private; M is told to the server |
| A, B factors | (r, in), (out, r) | private |

With aggregation `delta` the client sends up(M * D), with `mean` and `coverage` up(M * T°).
Measuring the change against the slots through the alignment *as it is after training* makes the
round trip exact: a client that is alone finds its own function again, for
down(S + up(D)) = down(S) + D whatever P has become.
"""

import torch
from peft import PeftModel, get_peft_model
from torch import nn
from torch.func import functional_call
from torch.nn import functional
from transformers import PreTrainedModel

from backend.contracts.metrics import MetricName
from backend.contracts.strategies import H2TuneParams
from worker.federated.adapters import TriLoraConfig, TriLoraLinear
from worker.federated.adapters.stack import MiddleStack
from worker.federated.alignment import map_up, orthonormality_error, retract
from worker.federated.client_round import below, snapshot, take
from worker.federated.seeds import derive_seed
from worker.federated.tasks.encoding import IGNORED_LABEL
from worker.federated.training import Batch, Group, Phase, num_optimizer_steps, steps_per_epoch
from worker.federated.types import ClientPlan, LocalClient, Metrics, Tensors
from worker.federated.wire import (
    TensorSpec,
    pack_entries,
    pack_mask,
    require_tensors,
    unpack_entries,
    unpack_mask,
)

_ADAPTER = "default"


def adapter_config(params: H2TuneParams, plan: ClientPlan, client: LocalClient) -> TriLoraConfig:
    """The TriLoRA adapter of one client in one run."""
    starts = {"none": "random", "orthonormal": "orthonormal", "shared_seed": "shared_seed"}
    return TriLoraConfig(
        r=client.spec.lora_rank,
        global_rank=plan.global_rank,
        num_slots=plan.num_slots,
        lora_alpha=client.spec.lora_alpha,
        lora_dropout=client.training.lora_dropout,
        layout=params.layout,
        sparsity=params.sparsity,
        alignment_start=params.alignment_init,
        alignment_constraint=params.alignment_constraint,
        alignment_sharing=params.alignment_sharing,
        factor_start=starts[params.gauge],
        seed=derive_seed(plan.seed, plan.client_id, "factors"),
        shared_seed=plan.seed,
    )


class ClientModel:
    """A client's base model with its adapter in place, and the parts of it by purpose."""

    def __init__(self, params: H2TuneParams, plan: ClientPlan, client: LocalClient) -> None:
        self.params = params
        self.adapted: PeftModel = get_peft_model(client.model, adapter_config(params, plan, client))
        self.model: PreTrainedModel = self.adapted.get_base_model()
        self.layers: dict[str, TriLoraLinear] = {
            layer.trilora_seat[_ADAPTER].module.name: layer
            for layer in self.model.modules()
            if isinstance(layer, TriLoraLinear)
        }
        first = next(iter(self.layers.values()))
        self.stack: MiddleStack = first.trilora_seat[_ADAPTER].stack
        self.stack.requires_grad_(False)

    # The parts, by names that stay the same from round to round.

    def factors(self) -> dict[str, nn.Parameter]:
        """Private factors, `A/<module>` and `B/<module>`."""
        factors = {f"A/{name}": layer.trilora_A[_ADAPTER] for name, layer in self.layers.items()}
        for name, layer in self.layers.items():
            factors[f"B/{name}"] = layer.trilora_B[_ADAPTER]
        return factors

    def changes(self) -> dict[str, nn.Parameter]:
        """What the round adds to each middle matrix, by module."""
        return {name: layer.trilora_D[_ADAPTER] for name, layer in self.layers.items()}

    def alignments(self) -> dict[str, nn.Parameter]:
        """Alignments by key: a role, or `all`."""
        keys = self.stack.alignment_keys
        return {key: self.stack.get_parameter(f"alignment_{key}") for key in keys}

    def scores(self) -> dict[str, nn.Parameter]:
        """Mask scores by role."""
        return {role: self.stack.scores(role) for role in self.stack.roles}

    # In and out.

    @torch.no_grad()
    def load_private(self, private: Tensors | None, origin: str) -> None:
        """Takes over what the client kept; parts that it does not have keep their fresh start."""
        parts = {
            "factors": self.factors(),
            "alignment": self.alignments(),
            "scores": self.scores(),
        }
        for prefix, parameters in parts.items():
            known = take(prefix, private)
            if not known:
                continue
            expected = {name: TensorSpec(tuple(p.shape)) for name, p in parameters.items()}
            require_tensors(known, expected, origin)
            for name, parameter in parameters.items():
                parameter.copy_(known[name])

    def private(self) -> Tensors:
        """What the client keeps, without the optimizer's state."""
        return {
            **below("factors", snapshot(self.factors())),
            **below("alignment", snapshot(self.alignments())),
            **below("scores", snapshot(self.scores())),
        }

    @torch.no_grad()
    def load_plan(self, plan: ClientPlan) -> None:
        """Puts the received slots in place: all of each R x R, or the entries of a given mask."""
        stack, geometry, origin = self.stack, self.stack.geometry, "the plan"
        rank, selectable = geometry.global_rank, geometry.num_selectable
        slots = TensorSpec((stack.num_slots, rank, rank))
        values = TensorSpec((stack.num_slots, geometry.num_kept))
        masks = take("mask", plan.tensors)
        for role, packed in masks.items():
            mask = unpack_mask(packed, selectable, geometry.num_selected, origin)
            stack.fix_mask(role, mask.to(stack.scores(role).device))
        known = {name: t for name, t in plan.tensors.items() if not name.startswith("mask/")}
        require_tensors(
            known,
            {
                f"values/{role}" if role in masks else f"slots/{role}": values
                if role in masks
                else slots
                for role in stack.roles
            },
            origin,
        )
        for role in stack.roles:
            if role in masks:
                held = geometry.held_entries(stack.selected(role)).cpu()
                full = unpack_entries(plan.tensors[f"values/{role}"], held, rank)
            else:
                full = plan.tensors[f"slots/{role}"]
            stack.slots(role).copy_(full)

    @torch.no_grad()
    def held_middles(self) -> Tensors:
        """M * T° of every module on the CPU, (R, R) fp32 each."""
        held = {}
        for name, layer in self.layers.items():
            module = layer.trilora_seat[_ADAPTER].module
            full = self.stack.down(module.role, module.layer) + layer.trilora_D[_ADAPTER]
            held[name] = (full * self.stack.mask(module.role)).cpu()
        return held

    @torch.no_grad()
    def shared(self, *, with_masks: bool) -> Tensors:
        """What leaves the client, on the CPU.

        Returns:
            `values/<role>`: held entries of up(M * D) or up(M * T°), (L*, num_kept) fp32.
            `coverage/<key>`: share of each slot that the client's layers fill, the row sums of
            P * P, (L*,) fp32.
            `mask/<role>`: packed positions, only with `with_masks`.
        """
        stack, geometry = self.stack, self.stack.geometry
        delta = self.params.aggregation == "delta"
        matrices = snapshot(self.changes()) if delta else self.held_middles()
        shared: Tensors = {}
        for role in stack.roles:
            by_layer = [
                matrices[name]
                for name, layer in self.layers.items()
                if layer.trilora_seat[_ADAPTER].module.role == role
            ]
            selected = stack.selected(role).cpu()
            slots = map_up(
                stack.alignment(role).cpu(),
                torch.stack(by_layer),
                self.params.alignment_constraint,
            )
            shared[f"values/{role}"] = pack_entries(slots, geometry.held_entries(selected))
            if with_masks:
                shared[f"mask/{role}"] = pack_mask(selected, geometry.num_selectable)
        for key, alignment in self.alignments().items():
            shared[f"coverage/{key}"] = alignment.detach().cpu().pow(2).sum(dim=1)
        return shared

    # Measures.

    def sparsity(self) -> float:
        """Share of zeros in the middle matrices, as they are."""
        held = self.held_middles().values()
        return sum(int((m == 0).sum()) for m in held) / sum(m.numel() for m in held)

    def alignment_metrics(self) -> Metrics:
        """How far the alignments are from orthonormal columns."""
        errors = [orthonormality_error(alignment) for alignment in self.alignments().values()]
        return {MetricName.ALIGNMENT_ERROR: max(errors)}

    def masks(self) -> Tensors:
        """Held entries by role, (R, R) bool on the CPU."""
        return {role: self.stack.mask(role).cpu() for role in self.stack.roles}


class Training:
    """The phases of one round of H2Tune on one client."""

    def __init__(self, braid: ClientModel, plan: ClientPlan, client: LocalClient) -> None:
        params, config = braid.params, client.training
        self._braid = braid
        self._params = params
        self._received = {name: self._middle(name).detach().clone() for name in braid.layers}
        self._teacher: Tensors = {}
        self._num_steps = num_optimizer_steps(config, len(client.data.train))
        self._steps_per_epoch = steps_per_epoch(config, len(client.data.train))
        shared = {f"D/{name}": change for name, change in braid.changes().items()}
        if params.train_alignment:
            shared.update({f"P/{key}": p for key, p in braid.alignments().items()})
        if plan.settings["train_mask"]:
            shared.update({f"C/{role}": c for role, c in braid.scores().items()})
        self._shared = Group(
            "shared",
            shared,
            params.shared_learning_rate or config.learning_rate,
            after_step=self._retract,
        )
        self._private = Group(
            "private", braid.factors(), params.private_learning_rate or config.learning_rate
        )

    def phases(self, *, joint: bool) -> list[Phase]:
        """Joint training, or shared and private stretches in turn, at the chosen granularity.

        The shared part gets `shared_fraction` of the steps, and each part at least one step of any
        stretch of two.
        """
        if joint:
            groups = [self._shared, self._private]
            return [Phase(groups, self._num_steps, penalty=self._shared_penalty())]
        match self._params.granularity:
            case "round":
                stretches = [self._num_steps]
            case "epoch":
                whole, rest = divmod(self._num_steps, self._steps_per_epoch)
                stretches = [self._steps_per_epoch] * whole + [rest] * (rest > 0)
            case "step":
                return self._interleaved()
        phases = []
        for stretch in stretches:
            num_shared = round(stretch * self._params.shared_fraction)
            if stretch > 1:
                num_shared = min(max(num_shared, 1), stretch - 1)
            phases += [self._shared_phase(num_shared), self._private_phase(stretch - num_shared)]
        return phases

    def _interleaved(self) -> list[Phase]:
        """One step at a time, the shared ones spread evenly."""
        fraction = self._params.shared_fraction
        return [
            self._shared_phase(1)
            if int((step + 1) * fraction) > int(step * fraction)
            else self._private_phase(1)
            for step in range(self._num_steps)
        ]

    def _shared_phase(self, num_steps: int) -> Phase:
        return Phase([self._shared], num_steps, penalty=self._shared_penalty())

    def _private_phase(self, num_steps: int) -> Phase:
        if self._params.distillation_weight == 0:
            return Phase([self._private], num_steps)
        return Phase([self._private], num_steps, self._distillation, before=self._remember_teacher)

    def _middle(self, name: str) -> torch.Tensor:
        layer = self._braid.layers[name]
        module = layer.trilora_seat[_ADAPTER].module
        return self._braid.stack.middle(module.role, module.layer, layer.trilora_D[_ADAPTER])

    @torch.no_grad()
    def _retract(self) -> None:
        """Puts trained alignments back onto orthonormal columns (polar retraction)."""
        params = self._params
        if params.train_alignment and params.alignment_constraint == "orthonormal":
            for alignment in self._braid.alignments().values():
                alignment.copy_(retract(alignment))

    def _shared_penalty(self):  # type: ignore[no-untyped-def]
        return self._on_middles if self._has_penalty() else None

    def _has_penalty(self) -> bool:
        anchored = self._params.anchor != "none" and self._params.anchor_weight > 0
        return anchored or self._params.norm_weight > 0

    def _on_middles(self, logits: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Mean over modules of norm penalty and anchor, both functions of T alone.

        proximal: (weight / 2) |T - T_received|^2. kl: weight KL(softmax T_received || softmax T)
        over the entries of T, as published; nearly zero for small T.
        """
        params, total = self._params, logits.new_zeros((), dtype=torch.float32)
        for name, received in self._received.items():
            middle = self._middle(name)
            total = total + params.norm_weight * middle.pow(2).mean()
            if params.anchor == "proximal":
                total = total + params.anchor_weight / 2 * (middle - received).pow(2).sum()
            elif params.anchor == "kl":
                now = functional.log_softmax(middle.flatten(), dim=0)
                then = functional.log_softmax(received.flatten(), dim=0)
                divergence = functional.kl_div(now, then, reduction="sum", log_target=True)
                total = total + params.anchor_weight * divergence
        return total / len(self._received)

    def _remember_teacher(self) -> None:
        factors = {id(p): p.detach().clone() for p in self._braid.factors().values()}
        self._teacher = {
            name: factors[id(parameter)]
            for name, parameter in self._braid.model.named_parameters()
            if id(parameter) in factors
        }

    def _distillation(self, logits: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Weight x mean over answer tokens of KL(teacher || student).

        The teacher is the model at the end of the shared phase, in evaluation mode.
        """
        model = self._braid.model
        model.eval()
        inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
        with torch.no_grad():
            teacher = functional_call(
                model, self._teacher, kwargs={**inputs, "use_cache": False}
            ).logits
        model.train()
        wanted = batch["labels"][:, 1:] != IGNORED_LABEL
        student_log = logits[:, :-1][wanted].float().log_softmax(-1)
        teacher_log = teacher[:, :-1][wanted].float().log_softmax(-1)
        divergence = functional.kl_div(
            student_log, teacher_log, reduction="batchmean", log_target=True
        )
        return self._params.distillation_weight * divergence


def mask_churn(before: Tensors, after: Tensors) -> float:
    """1 - Jaccard index of two sets of masks, in [0, 1]."""
    both = sum(int((before[role] & after[role]).sum()) for role in before)
    either = sum(int((before[role] | after[role]).sum()) for role in before)
    return 1 - both / either
