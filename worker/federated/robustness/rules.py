"""Robust rules: from the updates of all clients to what may be trusted of them.

| rule | what comes out | withstands | source |
|---|---|---|---|
| trimmed mean | per number: the mean without the k = floor(beta n) at either end | k of n | 1 |
| median | per number: the middle value; of an even count the mean of the two | < n / 2 | 1 |
| Krum | the update with the smallest score | f, n >= 2 f + 3 | 2 |
| multi-Krum | the n - f updates with the smallest scores | f, n >= 2 f + 3 | 2 |

With Krum the score of an update is the sum of its squared distances to its n - f - 2 closest.

1. Yin, Chen, Ramchandran and Bartlett, Byzantine-Robust Distributed Learning, ICML 2018.
2. Blanchard, El Mhamdi, Guerraoui and Stainer, Machine Learning with Adversaries, NIPS 2017.

No rule looks at numbers of examples: what a client says of itself would be its lever. Where clients
hold different entries (H2Tune), n is the number of those that hold an entry, and distances are
taken over the entries that both hold, per entry. All results are the same in any order of updates,
and equal updates come out as they went in, bit for bit.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from worker.federated.robustness.coordinates import Reading
from worker.federated.types import Tensors

CHUNK = 2**24
"""Numbers of all clients that are sorted at a time, which bounds the memory beside the updates."""


@dataclass(frozen=True, slots=True)
class Trimmed:
    """What is left of every number.

    Attributes:
        values: by name, fp64; zero where nobody holds the entry.
        kept: per update, of the numbers that it holds, the share that was not left out.
    """

    values: Tensors
    kept: list[float]


def trim(readings: Sequence[Reading], num_trimmed: Callable[[int], int]) -> Trimmed:
    """The mean of every number without the largest and the smallest.

    Args:
        readings: of all updates, at least one; a client may lack a name.
        num_trimmed: how many to leave out at either end, from how many hold an entry; less than
            half of them.
    """
    used = torch.zeros(len(readings), dtype=torch.int64)
    held = torch.zeros(len(readings), dtype=torch.int64)
    values: Tensors = {}
    for name in _names(readings):
        owners = [number for number, reading in enumerate(readings) if name in reading.values]
        shape = readings[owners[0]].values[name].shape
        parts = []
        for rows, present in _chunks([readings[owner] for owner in owners], name):
            mean, kept = _trim_columns(rows, present, num_trimmed)
            parts.append(mean)
            used[owners] += kept
            held[owners] += present.sum(1)
        values[name] = torch.cat(parts).view(shape)
    return Trimmed(values, (used / held.clamp(min=1)).tolist())


def _trim_columns(
    rows: torch.Tensor, present: torch.Tensor, num_trimmed: Callable[[int], int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Means of columns (n, d), fp64 (d,), and how many numbers of each row are in them (n,)."""
    num_rows = rows.shape[0]
    ordered = rows.masked_fill(~present, torch.inf).sort(dim=0, stable=True)
    counts = present.sum(0)
    ends = torch.tensor([num_trimmed(count) for count in range(num_rows + 1)])[counts]
    place = torch.arange(num_rows)[:, None]
    inside = (place >= ends) & (place < counts - ends)
    total = ordered.values.double().masked_fill(~inside, 0.0).sum(0)
    mean = total / (counts - 2 * ends).clamp(min=1)
    return mean, torch.bincount(ordered.indices[inside], minlength=num_rows)


def krum_scores(readings: Sequence[Reading], num_hostile: int) -> list[float]:
    """The score of every update: the smaller, the more others agree with it.

    Args:
        readings: of n updates, in order of client id.
        num_hostile: f, with n >= 2 f + 3.

    Returns:
        Sums of mean squared distances per common entry; infinite where too few others have any
        entry in common with the client.
    """
    num = len(readings)
    squared = torch.zeros(num, num, dtype=torch.float64)
    common = torch.zeros(num, num, dtype=torch.float64)
    for name in _names(readings):
        owners = torch.tensor([i for i, reading in enumerate(readings) if name in reading.values])
        for rows, present in _chunks([readings[int(i)] for i in owners], name):
            for place, owner in enumerate(owners):
                both = present & present[place]
                apart = (rows.double() - rows[place].double()).masked_fill(~both, 0.0)
                squared[owner, owners] += apart.pow(2).sum(1)
                common[owner, owners] += both.sum(1)
    distances = torch.where(common > 0, squared / common.clamp(min=1), torch.inf)
    distances.fill_diagonal_(torch.inf)
    nearest = distances.sort(dim=1).values[:, : num - num_hostile - 2]
    return nearest.sum(1).tolist()


def closest(scores: Sequence[float], count: int) -> list[int]:
    """Places of the smallest scores, ascending; of equal ones the first."""
    order = sorted(range(len(scores)), key=lambda place: (scores[place], place))
    return sorted(order[:count])


def median(values: Sequence[float]) -> float:
    """The middle value; of an even count the mean of the two."""
    ordered, half = sorted(values), len(values) // 2
    return ordered[half] if len(values) % 2 else (ordered[half - 1] + ordered[half]) / 2


def _names(readings: Sequence[Reading]) -> list[str]:
    return sorted({name for reading in readings for name in reading.values})


def _chunks(readings: Sequence[Reading], name: str) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Everybody's numbers under one name, (n, at most CHUNK / n) fp32, and which they hold."""
    shape = readings[0].values[name].shape
    flat = [reading.values[name].flatten() for reading in readings]
    marks = [reading.held[name].expand(shape).flatten() for reading in readings]
    width = max(1, CHUNK // len(readings))
    for start in range(0, shape.numel(), width):
        part = slice(start, start + width)
        yield torch.stack([row[part] for row in flat]), torch.stack([m[part] for m in marks])
