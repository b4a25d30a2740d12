"""Scores of clients in a round: who helps, who is loud, and who is unusual.

With u_i the change of client i, n_i its number of examples, and h_i = 1 on the entries it holds:

    mean = sum_i n_i u_i / sum_i n_i h_i              others_i: the same without client i
    cosine_to_mean = cos(u_i, mean)                   contribution = cos(u_i, others_i)
    norm_share = n_i |u_i| / sum_j n_j |u_j|          sent_norm = |u_i|
    outlier_score = (d_i - median d) / s,  d_i = RMS of u_i - median u over the entries i holds,
    s = 1.4826 MAD(d), at least a tenth of the median RMS of the changes

Means and medians are per entry, over the clients that hold it; the outlier score is the modified
z-score of Iglewicz and Hoaglin (How to Detect and Handle Outliers, 1993), who mark values above
3.5. Its lower bound on s keeps clients that agree almost perfectly from being marked for a hair.

Two passes over the updates in double precision, in memory that does not grow with their number: the
median is taken of `SAMPLE` numbers in all, drawn at random where there are more, so then the score
is an estimate. Scores inform people and decide nothing.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from backend.contracts.metrics import MetricName
from backend.contracts.privacy import PrivacySettings
from backend.contracts.robustness import SMALLEST_CROWD, unreadable
from backend.contracts.strategies import Params
from worker.federated.robustness.coordinates import Reading, change_norm, coordinates_of
from worker.federated.robustness.rules import median, trim
from worker.federated.seeds import generator
from worker.federated.types import ClientUpdate, FederationSpec, Metrics, ServerState, Tensors

SAMPLE = 2**26
"""Numbers of all clients together of which the median is taken (256 MiB)."""

NORMAL = 1.4826
"""Standard deviation of a normal variable over its median absolute deviation."""

LARGEST_SCORE = 1000.0
"""Beyond it a larger score says no more."""


def score_clients(
    params: Params,
    privacy: PrivacySettings,
    state: ServerState,
    federation: FederationSpec,
    updates: Iterable[ClientUpdate],
    sample: int = SAMPLE,
) -> dict[str, Metrics]:
    """Scores by client id; empty where single updates cannot be compared, or there is only one.

    Args:
        params: of the strategy.
        privacy: of the run; with secure aggregation there is nothing to compare.
        state: before the aggregation.
        federation: whose clients sent the updates.
        updates: of the round, accepted by the aggregation; read twice.
        sample: most numbers of which the median is taken.
    """
    if unreadable(params, privacy) is not None:
        return {}
    coordinates = coordinates_of(params, state, federation)
    sums = _Sums(coordinates.reference)
    drawn: list[Reading] = []
    indices: dict[str, torch.Tensor] = {}
    per_client = max(1, sample // len(federation.clients))
    source = generator(0, "scores")
    for update in updates:
        reading = coordinates.read(update)
        sums.add(update, reading)
        for name in sorted(reading.values.keys() - indices.keys()):
            indices[name] = _draw(reading.values, name, per_client, source)
        drawn.append(_taken(reading, coordinates.reference, indices))
    if len(sums.norms) < 2:  # with whom should one alone be compared?
        return {}
    shares = sums.norm_shares()
    outliers = _outlier_scores(drawn) if len(drawn) >= SMALLEST_CROWD else [None] * len(drawn)
    scores: dict[str, Metrics] = {}
    for update, outlier in zip(updates, outliers, strict=True):
        to_mean, to_others = sums.cosines(update, coordinates.read(update))
        found: Metrics = {
            MetricName.COSINE_TO_MEAN: to_mean,
            MetricName.CONTRIBUTION: to_others,
            MetricName.NORM_SHARE: shares[update.client_id],
            MetricName.SENT_NORM: sums.norms[update.client_id],
        }
        if outlier is not None:
            found[MetricName.OUTLIER_SCORE] = outlier
        scores[update.client_id] = found
    return scores


@dataclass
class _Sums:
    """What the first pass adds up, fp64."""

    reference: Tensors
    totals: Tensors = field(default_factory=dict)  # sum_i n_i u_i
    weights: Tensors = field(default_factory=dict)  # sum_i n_i h_i
    norms: dict[str, float] = field(default_factory=dict)  # |u_i|
    examples: dict[str, int] = field(default_factory=dict)  # n_i

    def add(self, update: ClientUpdate, reading: Reading) -> None:
        for name in reading.values:
            change, weight = self._weighted(update, reading, name)
            if name in self.totals:
                self.totals[name] += change
                self.weights[name] += weight
            else:
                self.totals[name], self.weights[name] = change, weight
        self.norms[update.client_id] = change_norm(reading, self.reference)
        self.examples[update.client_id] = update.num_examples

    def norm_shares(self) -> dict[str, float]:
        """By client id; all zero where nobody changed anything."""
        weighted = {client: self.examples[client] * norm for client, norm in self.norms.items()}
        total = sum(weighted.values())
        return {client: norm / total if total else 0.0 for client, norm in weighted.items()}

    def cosines(self, update: ClientUpdate, reading: Reading) -> tuple[float, float]:
        """With the mean of all, and with that of all others."""
        own = total = others = with_total = with_others = 0.0
        for name in reading.values:
            change, weight = self._weighted(update, reading, name)
            held = weight > 0
            mean = self.totals[name] / torch.where(self.weights[name] > 0, self.weights[name], 1.0)
            left = self.weights[name] - weight
            rest = (self.totals[name] - change) / torch.where(left > 0, left, 1.0)
            rest, mean = rest * (held & (left > 0)), mean * held
            own += float(change.pow(2).sum())
            total += float(mean.pow(2).sum())
            others += float(rest.pow(2).sum())
            with_total += float((change * mean).sum())
            with_others += float((change * rest).sum())
        return _cosine(with_total, own, total), _cosine(with_others, own, others)

    def _weighted(
        self, update: ClientUpdate, reading: Reading, name: str
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """N u and n h of one client."""
        held = reading.held[name].double()
        change = reading.values[name].double()
        if name in self.reference:
            change = change - self.reference[name].double()
        return update.num_examples * change * held, update.num_examples * held


def _cosine(inner: float, one: float, two: float) -> float:
    """Of two vectors by their inner product and squared norms; 0 where one of them is zero."""
    size = (one * two) ** 0.5
    return max(-1.0, min(1.0, inner / size)) if size > 0 else 0.0


def _draw(values: Tensors, name: str, per_client: int, source: torch.Generator) -> torch.Tensor:
    """Places in a flat tensor: all, or so many that a client's drawn numbers fit."""
    size, whole = values[name].numel(), sum(tensor.numel() for tensor in values.values())
    if whole <= per_client:
        return torch.arange(size)
    return torch.randint(size, (max(1, size * per_client // whole),), generator=source)


def _taken(
    reading: Reading, reference: Mapping[str, torch.Tensor], indices: Mapping[str, torch.Tensor]
) -> Reading:
    """The change at the drawn places."""
    values, held = {}, {}
    for name, tensor in reading.values.items():
        change = tensor.flatten()[indices[name]].double()
        if name in reference:
            change = change - reference[name].flatten()[indices[name]].double()
        values[name] = change.float()
        held[name] = reading.held[name].expand(tensor.shape).flatten()[indices[name]]
    return Reading(values, held)


def _outlier_scores(changes: Sequence[Reading]) -> list[float]:
    middle = trim(changes, lambda count: max(0, (count - 1) // 2)).values
    distances = [_rms(change, middle) for change in changes]
    usual = median(distances)
    spread = NORMAL * median([abs(distance - usual) for distance in distances])
    lengths = [_rms(change, {}) for change in changes]
    scale = max(spread, median(lengths) / 10)
    return [_score(distance - usual, scale) for distance in distances]


def _score(excess: float, scale: float) -> float:
    if excess == 0:
        return 0.0
    score = excess / scale if scale > 0 else math.copysign(LARGEST_SCORE, excess)
    return max(-LARGEST_SCORE, min(LARGEST_SCORE, score))


def _rms(change: Reading, middle: Mapping[str, torch.Tensor]) -> float:
    """Root mean square over the entries that the client holds; 0 where it holds none."""
    squared, count = 0.0, 0
    for name, values in change.values.items():
        apart = values.double() - middle[name] if name in middle else values.double()
        squared += float((apart * change.held[name]).pow(2).sum())
        count += int(change.held[name].sum())
    return (squared / count) ** 0.5 if count else 0.0
