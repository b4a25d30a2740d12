"""Co-LoRA on the client's side: a local LoRA everywhere, shared modules at the ends of blocks.

A client in a group, that is with others of its model, also uses their LoRAs (`colora_received`).

    y = W x + s B_l A_l x + s B ((P + sigma(g) P') A x + (q + sigma(g) q')) [+ sigma(h) dB dA x]

| Symbol | Shape | Where it lives |
|---|---|---|
| A_l, B_l | (r, in), (out, r), every adapted linear | trained here; sent inside groups only |
| dA, dB | (k, in), (out, k), every adapted linear | received inside groups; frozen |
| h | scalar per linear | private, trained: how much of dB dA counts |
| A, B | (R, in), (out, R), block ends only | private, aligned across clients once, then frozen |
| P, q | (R, R), (R,) | trained here, sent; zero at the start |
| P', q' | as P, q | received: what other clients sent, mixed for this client; frozen |
| g | scalar per linear | private, trained: how much of what was received counts |

Stacked by role over the N_B block ends, ascending: `P/<role>` (N_B, R, R), `q/<role>` (N_B, R).
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import cast

import torch
from peft import LoraConfig
from torch import nn
from torch.nn import functional

from backend.contracts.params.colora import CoLoraParams
from worker.federated.adapters.export import write_lora
from worker.federated.blocks import block_ends
from worker.federated.client_round import snapshot, take
from worker.federated.gauge import Factors
from worker.federated.roles import AdaptedModule, adapted_modules
from worker.federated.seeds import generator
from worker.federated.strategies.colora_alignment import aligned_factors
from worker.federated.strategies.colora_received import (
    ReceivedLora,
    add_branches,
    put_received,
)
from worker.federated.strategies.lora_client import LoraModel, load_lora, store_of
from worker.federated.strategies.probe_texts import is_of_gauge
from worker.federated.types import ClientPlan, ClientSpec, LocalClient, Tensors
from worker.federated.wire import TensorSpec, require_tensors

SKETCH_EXAMPLES = 64
"""Training examples behind a gradient sketch: enough for a direction, few enough to be quick."""


class SharedBranch(nn.Module):
    """A linear layer with s B ((P + sigma(g) P') A x + q + sigma(g) q') on top, in fp32."""

    def __init__(
        self, base_layer: nn.Module, factors: Factors, scaling: float, *, has_offset: bool
    ) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.scaling = scaling
        device = next(base_layer.parameters()).device
        rank = factors.in_factor.shape[0]
        self.in_factor = nn.Buffer(factors.in_factor.to(device))
        self.out_factor = nn.Buffer(factors.out_factor.to(device))
        self.received_core = nn.Buffer(torch.zeros(rank, rank, device=device))
        self.received_offset = nn.Buffer(torch.zeros(rank, device=device))
        self.core = nn.Parameter(torch.zeros(rank, rank, device=device))
        self.offset = nn.Parameter(torch.zeros(rank, device=device)) if has_offset else None
        self.gate = nn.Parameter(torch.zeros((), device=device))

    def whole_core(self) -> torch.Tensor:
        """P + sigma(g) P', (R, R)."""
        return self.core + torch.sigmoid(self.gate) * self.received_core

    def whole_offset(self) -> torch.Tensor | None:
        """The offset q + sigma(g) q', (R,); None where the run has no offsets."""
        if self.offset is None:
            return None
        return self.offset + torch.sigmoid(self.gate) * self.received_offset

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., in_features) -> (..., out_features), in the dtype of the base layer."""
        result: torch.Tensor = self.base_layer(x)
        codes = functional.linear(x.to(self.in_factor.dtype), self.in_factor)
        moved = functional.linear(codes, self.whole_core(), self.whole_offset())
        update = self.scaling * functional.linear(moved, self.out_factor)
        return result + update.to(result.dtype)


def module_specs(
    params: CoLoraParams, client: ClientSpec, num_blocks: int, rank: int
) -> dict[str, TensorSpec]:
    """What a client's shared modules look like, both ways."""
    specs = {f"P/{role}": TensorSpec((num_blocks, rank, rank)) for role in client.modules}
    if params.offset:
        specs.update({f"q/{role}": TensorSpec((num_blocks, rank)) for role in client.modules})
    return specs


class ClientModel:
    """A client's base model with both adapters in place, and the parts of it by purpose."""

    def __init__(self, params: CoLoraParams, plan: ClientPlan, client: LocalClient) -> None:
        self.params = params
        num_layers = client.spec.architecture.num_layers
        self.ends = block_ends(num_layers, plan.settings["num_blocks"])
        chosen = [m for m in adapted_modules(client.model) if m.layer in self.ends]
        aligned = aligned_factors(params, plan, client, chosen)  # before there is any adapter
        self.lora: LoraModel = load_lora(plan, client)
        self.modules = {module.name: module for module in chosen}
        self.branches: dict[str, SharedBranch] = {}
        for name in self.modules:
            layer = self.lora.model.get_submodule(name)
            layer.base_layer = SharedBranch(
                cast(nn.Module, layer.base_layer),
                aligned[name],
                self.lora.scaling,
                has_offset=params.offset,
            )
            self.branches[name] = layer.base_layer
        shares_lora: bool = plan.settings["shares_lora"]
        sharing = self.lora.modules if shares_lora else ()
        self.received: dict[str, ReceivedLora] = add_branches(self.lora.model, sharing)

    def trained(self) -> dict[str, nn.Parameter]:
        """What trains of the shared branches: `P/<module>`, `q/<module>`, `gate/<module>`."""
        found = {f"P/{name}": branch.core for name, branch in self.branches.items()}
        found |= {f"gate/{name}": branch.gate for name, branch in self.branches.items()}
        for name, branch in self.branches.items():
            if branch.offset is not None:
                found[f"q/{name}"] = branch.offset
        return found

    def gates(self) -> dict[str, nn.Parameter]:
        """h, which trains too: `lora_gate/<module>`; none where no LoRA is shared."""
        return {f"lora_gate/{name}": branch.gate for name, branch in self.received.items()}

    def frozen(self) -> dict[str, torch.Tensor]:
        """Aligned factors A and B, `in/<module>` and `out/<module>`."""
        found: Tensors = {f"in/{name}": branch.in_factor for name, branch in self.branches.items()}
        return found | {f"out/{name}": branch.out_factor for name, branch in self.branches.items()}

    @torch.no_grad()
    def load(self, plan: ClientPlan, client: LocalClient) -> None:
        """Puts what was received and what the client kept in place.

        Raises:
            InvalidUpdateError: the plan or the store does not fit the model.
        """
        self.lora.restore(take("factors", client.private), "AB", store_of(plan))
        kept, trained = take("branch", client.private), {**self.trained(), **self.gates()}
        if kept:
            shapes = {name: TensorSpec(tuple(p.shape)) for name, p in trained.items()}
            require_tensors(kept, shapes, store_of(plan))
            for name, parameter in trained.items():
                parameter.copy_(kept[name])
        put_received(self.received, self.lora.modules, plan, client)
        self._put_modules(plan, client)

    def _put_modules(self, plan: ClientPlan, client: LocalClient) -> None:
        """P' and q' of every role that the plan has."""
        received = {
            name: tensor
            for name, tensor in plan.tensors.items()
            if not (is_of_gauge(name) or (self.received and name.startswith("lora/")))
        }
        expected = module_specs(self.params, client.spec, len(self.ends), plan.global_rank)
        present = {name: expected[name] for name in expected if name in received}
        require_tensors(received, present, f"the plan of client {plan.client_id!r}")
        for name, module in self.modules.items():
            at, branch = self.ends.index(module.layer), self.branches[name]
            if f"P/{module.role}" in received:
                branch.received_core.copy_(received[f"P/{module.role}"][at])
            if f"q/{module.role}" in received:
                branch.received_offset.copy_(received[f"q/{module.role}"][at])

    def shared(self) -> Tensors:
        """The client's own modules, stacked by role over the block ends, and LoRA in a group."""
        by_role: dict[str, list[torch.Tensor]] = {}
        for name, module in self.modules.items():
            branch = self.branches[name]
            by_role.setdefault(f"P/{module.role}", []).append(branch.core.detach().cpu())
            if branch.offset is not None:
                by_role.setdefault(f"q/{module.role}", []).append(branch.offset.detach().cpu())
        modules = {name: torch.stack(tensors) for name, tensors in by_role.items()}
        return {**modules, **(self.lora.stacked() if self.received else {})}

    def sketch(self, plan: ClientPlan, client: LocalClient) -> Tensors:
        """Gradient of the loss by P at the last block end, of norm 1, with noise; by role (R, R).

        Its coordinates are codes, which mean the same in every model, so clients of different
        models can be compared. The noise is Gaussian of expected norm `sketch_noise`; it blurs
        single examples but is no proof of privacy.
        """
        last = {
            module.role: self.branches[name]
            for name, module in self.modules.items()
            if module.layer == self.ends[-1]
        }
        cores = [branch.core for branch in last.values()]
        rows = client.objective.encode(client.data.train[:SKETCH_EXAMPLES])
        total = [torch.zeros_like(core) for core in cores]
        for first in range(0, len(rows), client.training.batch_size):
            batch = client.objective.collate(rows[first : first + client.training.batch_size])
            batch = {name: tensor.to(self.lora.model.device) for name, tensor in batch.items()}
            logits = client.objective.target_logits(self.lora.model, batch)
            loss = functional.cross_entropy(
                logits.float(), client.objective.targets(batch), reduction="sum"
            )
            for part, gradient in zip(total, torch.autograd.grad(loss, cores), strict=True):
                part += gradient
        size = sum(float(part.double().pow(2).sum()) for part in total) ** 0.5
        entries = sum(part.numel() for part in total)
        source = generator(plan.seed, plan.client_id, "sketch", plan.round_number)
        deviation = self.params.sketch_noise / entries**0.5
        return {
            role: part.cpu() / max(size, torch.finfo(torch.float32).tiny)
            + deviation * torch.randn(part.shape, generator=source)
            for role, part in zip(last, total, strict=True)
        }

    def private(self) -> Tensors:
        """What the client keeps, without head and moments."""
        parts: Mapping[str, Mapping[str, torch.Tensor]] = {
            "factors": self.lora.factors(),
            "branch": {**self.trained(), **self.gates()},
            "aligned": self.frozen(),
        }
        return {
            f"{prefix}/{name}": tensor
            for prefix, tensors in parts.items()
            for name, tensor in snapshot(tensors).items()
        }

    @torch.no_grad()
    def save(self, folder: Path) -> None:
        """Writes all of it as one plain LoRA of rank r + R + k.

        A' = [A_l; A; dA] and B' = [B_l, B (P + sigma(g) P'), sigma(h) dB / s]. Linears that lack a
        part, or have less of it than others, get zero rows, so that one rank and scale hold
        everywhere and every LoRA server reads them right. Offsets become PEFT's `lora_bias`.
        """
        rank = next(iter(self.branches.values())).in_factor.shape[0]
        most = max((branch.rank for branch in self.received.values()), default=0)
        config = cast(LoraConfig, self.lora.adapted.peft_config["default"])
        factors, tensors = self.lora.factors(), {}
        for module in self.lora.modules:
            key, name = f"base_model.model.{module.name}", module.name
            own_a, own_b = factors[f"A/{name}"].cpu(), factors[f"B/{name}"].cpu()
            shared_a, shared_b, bias = self._shared_factors(module, rank)
            parts_a, parts_b = [own_a, shared_a], [own_b, shared_b]
            if name in self.received:
                branch = self.received[name]
                extra = most - branch.rank
                gated = branch.gated_out_factor().cpu() / self.lora.scaling
                parts_a.append(functional.pad(branch.in_factor.cpu(), (0, 0, 0, extra)))
                parts_b.append(functional.pad(gated, (0, extra)))
            tensors[f"{key}.lora_A.weight"] = torch.cat(parts_a)
            tensors[f"{key}.lora_B.weight"] = torch.cat(parts_b, dim=1)
            if self.params.offset:
                tensors[f"{key}.lora_B.bias"] = bias
        total = config.r + rank + most
        write_lora(
            folder,
            dataclasses.replace(
                config,
                r=total,
                lora_alpha=cast(int, self.lora.scaling * total),
                lora_bias=self.params.offset,
                inference_mode=True,
            ),
            tensors,
        )

    def _shared_factors(
        self, module: AdaptedModule, rank: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """A (R, in), B (P + sigma(g) P') (out, R) and the bias (out,); zero without a branch."""
        bias = torch.zeros(module.out_features)
        branch = self.branches.get(module.name)
        if branch is None:
            a, b = torch.zeros(rank, module.in_features), torch.zeros(module.out_features, rank)
            return a, b, bias
        offset = branch.whole_offset()
        bias = bias if offset is None else (branch.out_factor @ offset).cpu()
        return branch.in_factor.cpu(), (branch.out_factor @ branch.whole_core()).cpu(), bias
