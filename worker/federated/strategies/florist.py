"""FLoRIST: FLoRA's exact sum, sent back in no more rank than its energy needs.

Idea. As in FLoRA, the factors of all clients side by side have the weighted sum of their updates as
product, everybody adds that to the frozen base weights, and trains fresh factors. Here the server
first takes the singular value decomposition of the sum, layer by layer and from the thin factors
alone, and keeps only the largest singular values that together hold a share tau of the energy:
updates of many clients overlap, so few directions carry nearly all of them.

Reference: Ramesh and Dass, FLoRIST: Singular Value Thresholding for Efficient and Accurate
Federated Fine-Tuning of Large Language Models, MLSys 2026, arXiv 2506.09199. Deviations: QR of the
stacks instead of their SVDs (the same product, [V] to 7e-7); what clients do with the global pair
was not seen, so FLoRA's way is taken, which is exact whatever rank p the threshold gives.

| Symbol | Shape | |
|---|---|---|
| A_i, B_i | (r_i, in), (out, r_i) | factors of client i; `lora_client` for storage and scale |
| U S V^T | | SVD of one layer's sum_i p_i B_i A_i, p_i by numbers of examples |
| p | | smallest with sum_(j<=p) s_j^2 >= tau sum_j s_j^2, for each layer and role |
| B_g, A_g | (out, p), (p, in) | (U S)[:, :p] and V^T[:p] |

Leaves the client: A_i and B_i, L r_i sum_k (in_k + out_k) values of fp32. Arrives: A_g and B_g of
each layer, sum over layers and roles of p (in + out) values (all rounds' sum for a client that
missed one). Never leaves: data, base model, a head, AdamW's moments (of the head only).
Delivered: all that was added, as one LoRA adapter; layers of a smaller rank are filled with zeros,
so that stock PEFT loads it. Needs base weights that are not quantised.
"""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import torch

from backend.contracts.params.lora import FloristParams
from worker.federated.client_round import below, take
from worker.federated.compatibility import refuse_unequal
from worker.federated.low_rank import LowRank, factors_of, norm, products_of, spectrum
from worker.federated.strategies.base_change import (
    base_change,
    grown,
    outgoing,
    settings_of,
    train_fresh,
)
from worker.federated.strategies.lora_client import deliver_lora, load_products
from worker.federated.strategies.lora_exchange import (
    ProductSum,
    accepted,
    expected_factors,
    make_plans,
)
from worker.federated.types import (
    AggregationReport,
    ClientPlan,
    ClientUpdate,
    FederationSpec,
    LocalClient,
    Metrics,
    Refusal,
    ServerState,
    Tensors,
)
from worker.federated.wire import TensorSpec, require_tensors


class Florist:
    """See the module's text."""

    def __init__(self, params: FloristParams) -> None:
        self.params = params

    def check(self, federation: FederationSpec) -> list[Refusal]:
        """Refuses clients of another depth or width."""
        return refuse_unequal(self.params, federation)

    def init_state(self, federation: FederationSpec, seed: int) -> ServerState:
        """Remembers the seed: nothing has been added yet."""
        return ServerState({}, {"seed": seed})

    def configure_round(
        self, state: ServerState, federation: FederationSpec, round_number: int, *, deliver: bool
    ) -> dict[str, ClientPlan]:
        """The last round's global pair; all rounds' sum for who has missed one."""
        return make_plans(
            state,
            federation,
            round_number,
            deliver=deliver,
            tensors=lambda client: _ragged(outgoing(state, client.client_id)),
            settings=settings_of(state),
        )

    def train_client(self, plan: ClientPlan, client: LocalClient) -> ClientUpdate:
        """Adds what was learned so far to the base model, and trains and sends fresh factors."""
        return train_fresh(plan, client, _base_change)

    def deliver_client(self, plan: ClientPlan, client: LocalClient, folder: Path) -> Metrics:
        """Writes all that was added to the base model as the client's adapter."""
        lora = load_products(plan, client, _base_change(plan, client))
        return deliver_lora(client, lora, folder)

    def aggregate(
        self, state: ServerState, federation: FederationSpec, updates: Iterable[ClientUpdate]
    ) -> tuple[ServerState, AggregationReport]:
        """The part of sum_i p_i B_i A_i that holds the wanted share of its energy."""
        products, senders = ProductSum(), []
        for client, update in accepted(updates, federation, expected_factors):
            products.add(update.num_examples, update.shared)
            senders.append(client.client_id)
        stack = products.result()
        kept = {role: thresholded(total, self.params.energy) for role, total in stack.items()}
        ranks = torch.cat([_ranks(product) for product in kept.values()]).double()
        size = norm(stack.values())
        values = {
            "update_norm": size,
            "stacked_rank": float(max(product.rank for product in stack.values())),
            "mean_rank": float(ranks.mean()),
            "largest_rank": float(ranks.max()),
            "energy_kept": min(1.0, (norm(kept.values()) / size) ** 2) if size > 0 else 1.0,
        }
        return grown(state, kept, senders), AggregationReport(len(senders), values)


def num_components(values: torch.Tensor, energy: float) -> torch.Tensor:
    """How many of the largest singular values hold this share of the sum of squares.

    Args:
        values: (layers, k), falling.
        energy: tau in (0, 1]; 1 keeps all but what rounding hides.

    Returns:
        (layers,) int64 in [1, k].
    """
    squares = values.double().pow(2)
    before = squares.cumsum(dim=1) - squares
    return (before < energy * squares.sum(dim=1, keepdim=True)).sum(dim=1).clamp(min=1)


def thresholded(product: LowRank, energy: float) -> LowRank:
    """The closest product with just the rank that `energy` asks for, layer by layer, fp32.

    The rank is that of the layer with the most; the others' last components are zero.
    """
    parts = spectrum(product)
    numbers = num_components(parts.s, energy)
    most = int(numbers.max())
    kept = (torch.arange(most) < numbers[:, None]).double()
    b = parts.u[:, :, :most] * (parts.s[:, :most] * kept)[:, None]
    return LowRank((parts.v[:, :most] * kept[:, :, None]).float(), b.float())


def _ranks(product: LowRank) -> torch.Tensor:
    """Components of each layer that carry anything, (layers,)."""
    return product.b.any(dim=1).sum(dim=1)


def _ragged(tensors: Tensors) -> Tensors:
    """The last round's factors as they travel: `latest/A/<role>/<layer>`, each of its own rank."""
    travelling = {n: t for n, t in tensors.items() if not n.startswith("latest/")}
    for role, product in products_of(take("latest", tensors)).items():
        for layer, (a, b) in enumerate(zip(product.a, product.b, strict=True)):
            carries = b.any(dim=0)
            travelling[f"latest/A/{role}/{layer}"] = a[carries]
            travelling[f"latest/B/{role}/{layer}"] = b[:, carries]
    return travelling


def _base_change(plan: ClientPlan, client: LocalClient) -> dict[str, LowRank]:
    return base_change(_even(plan, client), client)


def _even(plan: ClientPlan, client: LocalClient) -> ClientPlan:
    """Inverse of `_ragged`, filling up with zeros.

    Raises:
        InvalidUpdateError: a factor is missing, unknown, misshaped or not finite.
    """
    ragged = take("latest", plan.tensors)
    if not ragged:
        return plan
    layers = range(client.spec.architecture.num_layers)
    expected = {}
    for role, module in client.spec.modules.items():
        for layer in layers:
            rank = _first_size(ragged.get(f"A/{role}/{layer}"))
            expected[f"A/{role}/{layer}"] = TensorSpec((rank, module.in_features))
            expected[f"B/{role}/{layer}"] = TensorSpec((module.out_features, rank))
    require_tensors(ragged, expected, f"the plan of client {plan.client_id!r}")
    most = max(1, *(spec.shape[0] for name, spec in expected.items() if name.startswith("A/")))
    even = {
        role: LowRank(
            torch.stack([_filled(ragged[f"A/{role}/{layer}"], 0, most) for layer in layers]),
            torch.stack([_filled(ragged[f"B/{role}/{layer}"], 1, most) for layer in layers]),
        )
        for role in client.spec.modules
    }
    others = {n: t for n, t in plan.tensors.items() if not n.startswith("latest/")}
    return replace(plan, tensors={**others, **below("latest", factors_of(even))})


def _first_size(tensor: torch.Tensor | None) -> int:
    return tensor.shape[0] if tensor is not None and tensor.dim() == 2 else 0


def _filled(factor: torch.Tensor, axis: int, size: int) -> torch.Tensor:
    """The factor with zeros behind it along an axis."""
    shape = list(factor.shape)
    shape[axis] = size - shape[axis]
    return torch.cat([factor, factor.new_zeros(shape)], dim=axis)
