"""How one round of H2Tune trains: which part when, and with which penalties."""

from typing import Any

import torch
from torch.func import functional_call
from torch.nn import functional

from worker.federated.alignment import retract
from worker.federated.client_round import head_groups
from worker.federated.objectives.objective import Batch
from worker.federated.optimizer import Group
from worker.federated.strategies.h2tune_client import ClientModel
from worker.federated.training import (
    Penalty,
    Phase,
    num_optimizer_steps,
    steps_per_epoch,
)
from worker.federated.types import ClientPlan, LocalClient, Tensors


class Training:
    """The phases of one round of H2Tune on one client."""

    def __init__(self, braid: ClientModel, plan: ClientPlan, client: LocalClient) -> None:
        params, config = braid.params, client.training
        self._braid = braid
        self._params = params  # settled: `h2tune_defaults`
        self._fraction = params.shared_fraction or 1.0
        self._objective = client.objective
        self._head = head_groups(client)
        self._received = {name: braid.middle(name).detach().clone() for name in braid.layers}
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
            groups = [self._shared, self._private, *self._head]
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
            num_shared = round(stretch * self._fraction)
            if stretch > 1 and self._fraction < 1:
                num_shared = min(max(num_shared, 1), stretch - 1)
            phases += [self._shared_phase(num_shared), self._private_phase(stretch - num_shared)]
        return phases

    def _interleaved(self) -> list[Phase]:
        """One step at a time, the shared ones spread evenly."""
        fraction = self._fraction
        return [
            self._shared_phase(1)
            if int((step + 1) * fraction) > int(step * fraction)
            else self._private_phase(1)
            for step in range(self._num_steps)
        ]

    def _shared_phase(self, num_steps: int) -> Phase:
        return Phase([self._shared, *self._head], num_steps, penalty=self._shared_penalty())

    def _private_phase(self, num_steps: int) -> Phase:
        groups = [self._private, *self._head]
        if self._params.distillation_weight == 0:
            return Phase(groups, num_steps)
        return Phase(groups, num_steps, self._distillation, before=self._remember_teacher)

    @torch.no_grad()
    def _retract(self) -> None:
        """Puts trained alignments back onto orthonormal columns (polar retraction)."""
        params = self._params
        if params.train_alignment and params.alignment_constraint == "orthonormal":
            for alignment in self._braid.alignments().values():
                alignment.copy_(retract(alignment))

    def _shared_penalty(self) -> Penalty | None:
        anchored = self._params.anchor != "none" and self._params.anchor_weight > 0
        return self._on_middles if anchored or self._params.norm_weight > 0 else None

    def _on_middles(self, logits: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Mean over modules of norm penalty and anchor, both functions of T alone.

        proximal: (weight / 2) |T - T_received|^2. kl: weight KL(softmax T_received || softmax T)
        over the entries of T, as published; nearly zero for small T.
        """
        params, total = self._params, logits.new_zeros((), dtype=torch.float32)
        for name, at_start in self._received.items():
            # A model on several GPUs has layers, and so middles, elsewhere.
            middle, received = self._braid.middle(name).to(total.device), at_start.to(total.device)
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
        """Weight x mean over targets of KL(teacher || student).

        The teacher is the model at the end of the shared phase, in evaluation mode.
        """
        model = self._braid.model
        model.train(mode=False)

        def as_teacher(**inputs: Any) -> Any:
            return functional_call(model, self._teacher, kwargs=inputs)

        with torch.no_grad():
            teacher = self._objective.target_logits(as_teacher, batch)
        model.train()
        student_log = logits.float().log_softmax(-1)
        teacher_log = teacher.float().log_softmax(-1)
        divergence = functional.kl_div(
            student_log, teacher_log, reduction="batchmean", log_target=True
        )
        return self._params.distillation_weight * divergence
