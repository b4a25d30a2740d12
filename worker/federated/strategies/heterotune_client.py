"""HeteroTune on the client's side: a model with FedAdapters, and what of it travels.

| Symbol | Shape | Where it lives |
|---|---|---|
| F branches | (kappa, kappa), `held` of them per layer | server; arrive and go back every round |
| D, U | (kappa, d), (d, kappa) | private |
| G gates | (held,), or (held, kappa) with `dema` | private |

One tensor travels each way, `branches` (layers, held, kappa, kappa) fp32: down as values, up as
changes, so that a client which trained nothing sends exact zeros.
"""

from pathlib import Path
from typing import cast

import torch
from peft import PeftModel, get_peft_model
from peft.utils import get_peft_model_state_dict
from torch import nn
from transformers import PreTrainedModel

from backend.contracts.params.heterotune import HeteroTuneParams
from worker.federated.adapters import FedAdapterBlock, FedAdapterConfig
from worker.federated.adapters.export import write_adapter
from worker.federated.adapters.fedadapter_config import Gating
from worker.federated.client_round import body_of, take
from worker.federated.optimizer import Group
from worker.federated.seeds import derive_seed
from worker.federated.types import ClientPlan, ClientSpec, LocalClient, Tensors
from worker.federated.wire import TensorSpec, require_tensors

_ADAPTER = "default"
_GATINGS: dict[str, Gating] = {"fedadapter": "scalars", "dema": "softmax"}


def num_held(params: HeteroTuneParams, lora_rank: int, global_rank: int) -> int:
    """Branches that a client of this rank holds: ceil(beta r / R), so 1 at least and beta for R."""
    return -(-params.num_branches * lora_rank // global_rank)


def branch_specs(
    params: HeteroTuneParams, client: ClientSpec, global_rank: int
) -> dict[str, TensorSpec]:
    """What travels between a client and the server."""
    held = num_held(params, client.lora_rank, global_rank)
    shape = (client.architecture.num_layers, held, params.bottleneck, params.bottleneck)
    return {"branches": TensorSpec(shape)}


class ClientModel:
    """A client's base model with a FedAdapter on every block, and the parts of it by purpose."""

    def __init__(self, params: HeteroTuneParams, plan: ClientPlan, client: LocalClient) -> None:
        config = FedAdapterConfig(
            bottleneck=params.bottleneck,
            num_branches=num_held(params, client.spec.lora_rank, plan.global_rank),
            activation=params.activation,
            gating=_GATINGS[params.variant],
            dropout=client.training.lora_dropout,
            seed=derive_seed(plan.seed, plan.client_id, "factors"),
            shared_seed=plan.seed,
        )
        self.params = params
        self.adapted: PeftModel = get_peft_model(client.model, config)
        self.model: PreTrainedModel = body_of(self.adapted)
        self.blocks: dict[str, FedAdapterBlock] = {
            module.block.name: module
            for module in self.model.modules()
            if isinstance(module, FedAdapterBlock)
        }

    def branches(self) -> dict[str, nn.Parameter]:
        """Shared, `F/<block>` (held, kappa, kappa), by depth."""
        return {f"F/{name}": block.fedadapter_F[_ADAPTER] for name, block in self.blocks.items()}

    def factors(self) -> dict[str, nn.Parameter]:
        """Private, `D/<block>`, `U/<block>` and `G/<block>`."""
        return {
            f"{letter}/{name}": cast(nn.ParameterDict, getattr(block, f"fedadapter_{letter}"))[
                _ADAPTER
            ]
            for letter in "DUG"
            for name, block in self.blocks.items()
        }

    @torch.no_grad()
    def load(self, plan: ClientPlan, client: LocalClient) -> None:
        """Puts the received branches and the client's own parts in place.

        Raises:
            InvalidUpdateError: the plan or the store does not fit the model.
        """
        expected = branch_specs(self.params, client.spec, plan.global_rank)
        require_tensors(plan.tensors, expected, f"the plan of client {plan.client_id!r}")
        for branch, received in zip(
            self.branches().values(), plan.tensors["branches"], strict=True
        ):
            branch.copy_(received)
        known, factors = take("factors", client.private), self.factors()
        if known:
            origin = f"the store of client {plan.client_id!r}"
            shapes = {name: TensorSpec(tuple(factor.shape)) for name, factor in factors.items()}
            require_tensors(known, shapes, origin)
            for name, factor in factors.items():
                factor.copy_(known[name])

    @torch.no_grad()
    def shared(self, plan: ClientPlan) -> Tensors:
        """What leaves the client: how the branches changed in this round."""
        now = torch.stack([branch.detach().cpu() for branch in self.branches().values()])
        return {"branches": now - plan.tensors["branches"]}

    def groups(self, client: LocalClient) -> list[Group]:
        """What trains, jointly: while U is zero the branches have no gradient of their own."""
        rate = client.training.learning_rate
        shared_rate = self.params.shared_learning_rate or rate
        return [
            Group("shared", self.branches(), shared_rate),
            Group("private", self.factors(), rate),
        ]

    def save(self, folder: Path) -> None:
        """Writes a FedAdapter folder; PEFT loads it where `worker.federated.adapters` is known."""
        tensors = get_peft_model_state_dict(self.adapted, save_embedding_layers=False)
        write_adapter(folder, self.adapted.peft_config[_ADAPTER], tensors)
