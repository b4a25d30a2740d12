"""The probe gauge: private factors that give every code one meaning in all models.

Idea. B T A is unchanged by (B G^-1, G T H^-1, H A), so a middle matrix means nothing without its
factors. Before training, every model reads the same public probe texts; what it makes of them is
regressed onto codes that all clients share, and the regressions become A and B. From then on "code
c" is the same property of a text whatever the model's family, depth, width and rotation, and adding
the middle matrices of different models adds the same things.

| Symbol | Shape | Meaning |
|---|---|---|
| n | | number of probe units: whole texts, or words of them |
| x, y | (n, d) | input and output of one adapted linear, mean over the tokens of each unit |
| k | | whitened scores per linear that enter the common codes |
| R | | number of codes, the federation's global rank |
| G | (n, R) | common codes of the units, columns orthogonal with variance 1 |

Codes come from what all clients' models say about the units (generalised CCA in its MAX-VAR form,
Kettenring 1971), or from `reference_codes` (principal components of one public model: nothing is
exchanged, and who joins late gets the same gauge). The first need no more of the clients than the
sum of their `agreement` matrices, so that they may be added up behind masks.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel

from worker.federated.errors import InvalidConfigError
from worker.federated.probes import ProbeBatch
from worker.federated.roles import adapted_modules

Hook = Callable[[nn.Module, tuple[torch.Tensor, ...], torch.Tensor], None]

SCORES_PER_LINEAR = 48
"""k: enough for R up to 32; beyond it mostly noise of the single model enters."""

UNITS_PER_SCORE = 8
"""With fewer units than this for each score, spans fill the space and agree on anything."""

_NOISE = 1e-6
"""Eigenvalues below this share of the largest are rounding of sums that travelled in fp32."""

RIDGE = 0.1
"""Of the regression onto codes, in mean variances of the input: probes are few and correlated."""


@dataclass(frozen=True, slots=True)
class Activations:
    """What one adapted linear saw and gave on the probe units, fp32 on the CPU."""

    inputs: torch.Tensor  # (n, in_features)
    outputs: torch.Tensor  # (n, out_features)


@dataclass(frozen=True, slots=True)
class Factors:
    """Private factors of one linear in the common gauge."""

    in_factor: torch.Tensor  # A, (R, in_features) fp32
    out_factor: torch.Tensor  # B, (out_features, R) fp32


@torch.no_grad()
def record(model: PreTrainedModel, batches: Iterable[ProbeBatch]) -> dict[str, Activations]:
    """Runs the probes through a frozen base model and pools what every adapted linear did.

    Args:
        model: without adapters, or with adapters that change nothing yet.
        batches: the probe texts in this model's tokens; any number of units each.

    Returns:
        By module name, in the order of `roles.adapted_modules`.
    """
    modules = [module.name for module in adapted_modules(model)]
    seen: dict[str, tuple[list[torch.Tensor], list[torch.Tensor]]] = {
        name: ([], []) for name in modules
    }
    pooling = torch.empty(0)

    def listen(name: str) -> Hook:
        def hook(_: nn.Module, given: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            inputs, outputs = seen[name]
            weights = pooling.to(output.device)  # a model on several GPUs has layers elsewhere
            inputs.append((weights @ given[0].flatten(0, -2).float()).cpu())
            outputs.append((weights @ output.flatten(0, -2).float()).cpu())

        return hook

    handles = [model.get_submodule(name).register_forward_hook(listen(name)) for name in modules]
    try:
        for batch in batches:
            pooling = batch.pooling.to(model.device)
            model(**{name: tensor.to(model.device) for name, tensor in batch.inputs.items()})
    finally:
        for handle in handles:
            handle.remove()
    return {
        name: Activations(torch.cat(inputs), torch.cat(outputs))
        for name, (inputs, outputs) in seen.items()
    }


def probe_scores(activations: torch.Tensor, num_scores: int = SCORES_PER_LINEAR) -> torch.Tensor:
    """Whitened scores of the units: the first left singular vectors of the centred activations.

    Rotating, shifting or scaling the hidden space leaves the span of the scores as it is.

    Args:
        activations: x or y, (n, d).
        num_scores: k; fewer come back if n - 1 or d is smaller.

    Returns:
        (n, k) fp32 with orthonormal columns, each of mean zero.
    """
    centred = (activations - activations.mean(dim=0)).double()
    left, values, _ = torch.linalg.svd(centred, full_matrices=False)
    rank = int((values > values[0] * 1e-6).sum())
    scores: torch.Tensor = left[:, : min(num_scores, rank)].float()
    return scores


def agreement(scores: Iterable[torch.Tensor]) -> torch.Tensor:
    """What some layers say about the units, sum_j U_j U_j^T: which units they take to be alike.

    Each term projects onto the span of one layer's scores, so a rotation of its hidden space
    changes nothing, and the largest eigenvalue is at most the number of layers.

    Args:
        scores: U_j, (n, k_j) each with orthonormal columns, at least one.

    Returns:
        (n, n) fp64, symmetric, no eigenvalue below 0.
    """
    stacked = torch.cat([score.double() for score in scores], dim=1)
    return stacked @ stacked.T


def agreed_codes(total: torch.Tensor, num_codes: int) -> torch.Tensor:
    """Codes that all models together agree on most (generalised CCA, MAX-VAR).

    The first eigenvectors of the sum of projections, times sqrt(n). They are the left singular
    vectors of all scores side by side; neither the order of clients nor a rotation of any of them
    changes them. Each sign is fixed by making the entry of largest size positive.

    Args:
        total: (n, n), a sum of `agreement` matrices in any positive proportion.
        num_codes: R.

    Returns:
        G, (n, R) fp32.

    Raises:
        InvalidConfigError: the probes are too few for so many codes.
    """
    values, vectors = torch.linalg.eigh(total.double())  # ascending
    _require_codes(int((values > _NOISE * values[-1]).sum()), num_codes)
    return _standardised(vectors.flip(1)[:, :num_codes])


def reference_codes(embeddings: torch.Tensor, num_codes: int) -> torch.Tensor:
    """Principal components of what one public model says about the units.

    Args:
        embeddings: (n, d) of any one model.
        num_codes: R.

    Returns:
        G, (n, R) fp32.

    Raises:
        InvalidConfigError: the embeddings have too few dimensions, or the probes too few units.
    """
    scores = probe_scores(embeddings, num_codes)
    _require_codes(scores.shape[1], num_codes)
    return _standardised(scores.double())


def shared_variance(codes: torch.Tensor, scores: torch.Tensor) -> float:
    """Share of the codes' variance that one model's scores explain, in [0, 1].

    Args:
        codes: G, (n, R).
        scores: (n, k) with orthonormal columns.
    """
    explained = (scores.double().T @ codes.double()).pow(2).sum()
    return float(explained / codes.double().pow(2).sum())


def gauged_factors(
    activations: Activations, in_codes: torch.Tensor, out_codes: torch.Tensor, ridge: float = RIDGE
) -> Factors:
    """A reads the codes off a linear's input, B writes them into its output.

    A is `reading_factor`; being orthogonal to the mean of x, it makes the update add no constant,
    so that it stays a plain LoRA. B is the covariance of y with G: writing one unit of code c moves
    the output as far as one standard deviation of c does in this model.

    Args:
        activations: of the linear.
        in_codes: G of the input side, (n, R).
        out_codes: G of the output side, (n, R).
        ridge: penalty in mean variances of x, above 0.
    """
    outputs = activations.outputs.double()
    out = (outputs - outputs.mean(dim=0)).T @ out_codes.double() / len(outputs)
    return Factors(reading_factor(activations.inputs, in_codes, ridge), out.float())


def reading_factor(inputs: torch.Tensor, codes: torch.Tensor, ridge: float = RIDGE) -> torch.Tensor:
    """A: the ridge regression from centred x to G, made orthogonal to the mean of x.

    Args:
        inputs: x, (n, d).
        codes: G, (n, R).
        ridge: penalty in mean variances of x, above 0.

    Returns:
        (R, d) fp32.
    """
    inputs = inputs.double()
    num_units, width = inputs.shape
    mean = inputs.mean(dim=0)
    centred = inputs - mean
    covariance = centred.T @ centred / num_units
    penalty = ridge * covariance.trace() / width
    eye = torch.eye(width, dtype=torch.float64)
    target = centred.T @ codes.double() / num_units
    factor = torch.linalg.solve(covariance + penalty * eye, target).T
    direction = mean / mean.norm().clamp_min(1e-12)
    found: torch.Tensor = (factor - (factor @ direction)[:, None] * direction).float()
    return found


def scores_by_side(
    model: PreTrainedModel, activations: Mapping[str, Activations], num_codes: int
) -> dict[str, list[torch.Tensor]]:
    """A client's scores for the exchange, one matrix per layer.

    Args:
        model: whose linears were recorded.
        activations: by module.
        num_codes: R, which with the number of units decides k.

    Returns:
        By `<role>/in` and `<role>/out`, matrices (n, k) in the order of the layers.
    """
    scores: dict[str, list[torch.Tensor]] = {}
    for module in adapted_modules(model):
        seen = activations[module.name]
        for side, pooled in (("in", seen.inputs), ("out", seen.outputs)):
            found = probe_scores(pooled, score_count(len(pooled), num_codes))
            scores.setdefault(f"{module.role}/{side}", []).append(found)
    return scores


def score_count(num_units: int, num_codes: int) -> int:
    """How many scores of each linear enter the common codes: k, at least R where k allows."""
    return min(SCORES_PER_LINEAR, max(num_codes, num_units // UNITS_PER_SCORE))


def _standardised(vectors: torch.Tensor) -> torch.Tensor:
    """Unit variance per column, and the sign that makes the largest entry positive."""
    largest = vectors.abs().argmax(dim=0)
    signs = vectors[largest, torch.arange(vectors.shape[1])].sign()
    codes: torch.Tensor = (vectors * signs * vectors.shape[0] ** 0.5).float()
    return codes


def _require_codes(present: int, wanted: int) -> None:
    if present < wanted:
        raise InvalidConfigError(
            f"The probes give {present} common codes but global_rank is {wanted}: add probe texts, "
            "or lower the global rank."
        )
