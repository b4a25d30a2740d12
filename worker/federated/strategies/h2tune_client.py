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
from transformers import PreTrainedModel

from backend.contracts.metrics import MetricName
from backend.contracts.params.h2tune import H2TuneParams
from worker.federated.adapters import TriLoraConfig, TriLoraLinear
from worker.federated.adapters.config import FactorStart
from worker.federated.adapters.stack import MiddleStack
from worker.federated.alignment import map_up, orthonormality_error, row_entropy
from worker.federated.client_round import below, body_of, snapshot, take
from worker.federated.errors import InvalidUpdateError
from worker.federated.seeds import derive_seed
from worker.federated.strategies.h2tune_server import sends_changes
from worker.federated.strategies.probe_texts import is_of_gauge
from worker.federated.types import ClientPlan, LocalClient, Metrics, Tensors
from worker.federated.wire import (
    TensorSpec,
    pack_entries,
    pack_mask,
    require_tensors,
    unpack_entries,
    unpack_mask,
)

ADAPTER = "default"

_FACTOR_STARTS: dict[str, FactorStart] = {
    "none": "random",
    "orthonormal": "orthonormal",
    "shared_seed": "shared_seed",
    "probe": "random",  # replaced by what the client brings
}


def adapter_config(params: H2TuneParams, plan: ClientPlan, client: LocalClient) -> TriLoraConfig:
    """The TriLoRA adapter of one client in one run."""
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
        factor_start=_FACTOR_STARTS[params.gauge],
        identity=params.gauge != "probe",
        seed=derive_seed(plan.seed, plan.client_id, "factors"),
        shared_seed=plan.seed,
    )


class ClientModel:
    """A client's base model with its adapter in place, and the parts of it by purpose."""

    def __init__(self, params: H2TuneParams, plan: ClientPlan, client: LocalClient) -> None:
        self.params = params
        self.adapted: PeftModel = get_peft_model(client.model, adapter_config(params, plan, client))
        self.model: PreTrainedModel = body_of(self.adapted)
        self.layers: dict[str, TriLoraLinear] = {
            layer.trilora_seat[ADAPTER].module.name: layer
            for layer in self.model.modules()
            if isinstance(layer, TriLoraLinear)
        }
        first = next(iter(self.layers.values()))
        self.stack: MiddleStack = first.trilora_seat[ADAPTER].stack
        self.stack.requires_grad_(False)

    # The parts, by names that stay the same from round to round.

    def factors(self) -> dict[str, nn.Parameter]:
        """Private factors, `A/<module>` and `B/<module>`."""
        factors = {f"A/{name}": layer.trilora_A[ADAPTER] for name, layer in self.layers.items()}
        for name, layer in self.layers.items():
            factors[f"B/{name}"] = layer.trilora_B[ADAPTER]
        return factors

    def changes(self) -> dict[str, nn.Parameter]:
        """What the round adds to each middle matrix, by module."""
        return {name: layer.trilora_D[ADAPTER] for name, layer in self.layers.items()}

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
        rank = geometry.global_rank
        masks = take("mask", plan.tensors)
        expected = {
            f"slots/{role}": TensorSpec((stack.num_slots, rank, rank)) for role in stack.roles
        }
        if masks:
            held_only = TensorSpec((stack.num_slots, geometry.num_kept))
            expected = {f"values/{role}": held_only for role in stack.roles}
        matrices = {
            name: tensor
            for name, tensor in plan.tensors.items()
            if not (name.startswith("mask/") or is_of_gauge(name))
        }
        require_tensors(matrices, expected, origin)
        if masks and masks.keys() != set(stack.roles):
            raise InvalidUpdateError(
                f"In {origin}, masks are given for {sorted(masks)}, expected one for each of "
                f"{sorted(stack.roles)}: client and server must run the same version."
            )
        for role, packed in masks.items():
            selected = unpack_mask(packed, geometry.num_selectable, geometry.num_selected, origin)
            held = geometry.held_entries(selected)
            stack.fix_mask(role, selected.to(stack.scores(role).device))
            stack.slots(role).copy_(unpack_entries(matrices[f"values/{role}"], held, rank))
        for role, slots in take("slots", matrices).items():
            stack.slots(role).copy_(slots)

    def middle(self, name: str) -> torch.Tensor:
        """T of one module in the client's own size, in the graph."""
        layer = self.layers[name]
        module = layer.trilora_seat[ADAPTER].module
        return self.stack.middle(module.role, module.layer, layer.trilora_D[ADAPTER])

    @torch.no_grad()
    def held_middles(self) -> Tensors:
        """M * T° of every module on the CPU, (R, R) fp32 each."""
        held = {}
        for name, layer in self.layers.items():
            module = layer.trilora_seat[ADAPTER].module
            received = self.stack.down(module.role, module.layer)
            full = received + layer.trilora_D[ADAPTER].to(received.device)
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
        delta = sends_changes(self.params)
        matrices = snapshot(self.changes()) if delta else self.held_middles()
        shared: Tensors = {}
        for role in stack.roles:
            by_layer = [
                matrices[name]
                for name, layer in self.layers.items()
                if layer.trilora_seat[ADAPTER].module.role == role
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
        """How far the alignments are from orthonormal columns, and how much they mix layers."""
        alignments = self.alignments().values()
        entropies = [row_entropy(alignment) for alignment in alignments]
        return {
            MetricName.ALIGNMENT_ERROR: max(map(orthonormality_error, alignments)),
            MetricName.ALIGNMENT_ENTROPY: sum(entropies) / len(entropies),
        }

    @torch.no_grad()
    def drift(self, shared: Tensors) -> float:
        """Norm of what is sent minus what was received, over the norm of the latter.

        Both on the held entries of the slots; 0 where both are zero.
        """
        moved, size = 0.0, 0.0
        for role in self.stack.roles:
            held = self.stack.geometry.held_entries(self.stack.selected(role).cpu())
            received = pack_entries(self.stack.slots(role).cpu(), held)
            sent = shared[f"values/{role}"]
            change = sent if sends_changes(self.params) else sent - received
            moved += float(change.double().pow(2).sum())
            size += float(received.double().pow(2).sum())
        return (moved / size) ** 0.5 if size > 0 else float(moved > 0)

    def masks(self) -> Tensors:
        """Held entries by role, (R, R) bool on the CPU."""
        return {role: self.stack.mask(role).cpu() for role in self.stack.roles}


def mask_churn(before: Tensors, after: Tensors) -> float:
    """1 - Jaccard index of two sets of masks, in [0, 1]."""
    both = sum(int((before[role] & after[role]).sum()) for role in before)
    either = sum(int((before[role] | after[role]).sum()) for role in before)
    return 1 - both / either
