"""Any strategy with linear aggregation, whose mean a few hostile clients cannot carry away.

Idea. A weighted mean cannot tell the updates of the clients from as many copies of their mean. So
a rule finds what may be trusted of all updates together, every update gets that in place of its
own, and the wrapped strategy aggregates as ever. Krum leaves whole updates out instead, and
clipping scales them.

Without a rule, and with a fixed clipping norm, updates pass one at a time; the other rules must
hold those of all clients in memory.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from backend.contracts.metrics import MetricName
from backend.contracts.robustness import Robustness
from backend.contracts.strategies import Params
from worker.federated.errors import InvalidUpdateError, UpdateTooLargeError
from worker.federated.robustness.coordinates import (
    Coordinates,
    Reading,
    change_norm,
    coordinates_of,
)
from worker.federated.robustness.rules import closest, krum_scores, median, trim
from worker.federated.strategy import Strategy
from worker.federated.types import (
    AggregationReport,
    ClientUpdate,
    FederationSpec,
    Metrics,
    ServerState,
)
from worker.federated.wrapped import Wrapped, true_of_a_mean


def with_robustness(strategy: Strategy, params: Params, settings: Robustness) -> Strategy:
    """The strategy under these settings; itself where they ask for nothing."""
    return strategy if settings.is_off else Robust(strategy, params, settings)


@dataclass(frozen=True, slots=True)
class _Trusted:
    """What stands in for the updates of a round."""

    updates: Sequence[ClientUpdate]
    kept: Mapping[str, float]  # by client id: the share of its update that counts
    values: Mapping[str, float]  # for the report


class Robust(Wrapped):
    """See the module's text.

    Args:
        inner: made from `params`.
        params: of the strategy.
        settings: of the run, that `robustness_refusals` lets pass.
    """

    def __init__(self, inner: Strategy, params: Params, settings: Robustness) -> None:
        super().__init__(inner, params)
        self.settings = settings

    def aggregate(
        self, state: ServerState, federation: FederationSpec, updates: Iterable[ClientUpdate]
    ) -> tuple[ServerState, AggregationReport]:
        """The next state from what the rule trusts; the report says how much of whom that was.

        Raises:
            UpdateTooLargeError: a change is longer than `max_update_norm`.
            InvalidUpdateError: too few updates for the rule, or what the wrapped strategy refuses.
        """
        coordinates = coordinates_of(self.params, state, federation)
        bounded = self._bounded(coordinates, updates)
        if self.settings.rule == "none":
            return self.inner.aggregate(state, federation, bounded)
        if self.settings.rule == "norm_clipping" and self.settings.clip_norm is not None:
            kept: dict[str, float] = {}
            clipped = _clipped(coordinates, bounded, self.settings.clip_norm, kept)
            next_state, report = self.inner.aggregate(state, federation, clipped)
            return next_state, _told(report, kept, _clip_values(self.settings.clip_norm, kept))
        trusted = self._trusted(coordinates, list(bounded))
        next_state, report = self.inner.aggregate(state, federation, trusted.updates)
        if self.settings.rule in {"median", "trimmed_mean"}:
            report = replace(report, values=true_of_a_mean(report))
        return next_state, _told(report, trusted.kept, trusted.values)

    def _bounded(
        self, coordinates: Coordinates, updates: Iterable[ClientUpdate]
    ) -> Iterator[ClientUpdate]:
        bound = self.settings.max_update_norm
        for update in updates:
            if bound is not None:
                require_bounded(coordinates, update, bound)
            yield update

    def _trusted(self, coordinates: Coordinates, updates: list[ClientUpdate]) -> _Trusted:
        self._require_enough(updates)
        match self.settings.rule:
            case "krum":
                return self._closest(coordinates, updates, 1)
            case "multi_krum":
                return self._closest(coordinates, updates, len(updates) - self.settings.num_hostile)
            case "norm_clipping":
                norms = [_norm(coordinates, update) for update in updates]
                kept: dict[str, float] = {}
                clipped = list(_clipped(coordinates, updates, median(norms), kept))
                return _Trusted(clipped, kept, _clip_values(median(norms), kept))
            case _:
                return self._trimmed(coordinates, updates)

    def _trimmed(self, coordinates: Coordinates, updates: list[ClientUpdate]) -> _Trusted:
        trimmed = trim(_readings(coordinates, updates), self.settings.num_trimmed)
        copies = [coordinates.write(update, trimmed.values) for update in updates]
        names = [update.client_id for update in updates]
        return _Trusted(copies, dict(zip(names, trimmed.kept, strict=True)), {})

    def _closest(
        self, coordinates: Coordinates, updates: list[ClientUpdate], count: int
    ) -> _Trusted:
        scores = krum_scores(_readings(coordinates, updates), self.settings.num_hostile)
        chosen = closest(scores, count)
        kept = {update.client_id: float(place in chosen) for place, update in enumerate(updates)}
        alike = [replace(updates[place], num_examples=1) for place in chosen]
        return _Trusted(alike, kept, {"num_left_out": float(len(updates) - count)})

    def _require_enough(self, updates: Sequence[ClientUpdate]) -> None:
        needed = self.settings.fewest_updates
        if len(updates) < needed:
            raise InvalidUpdateError(
                f"The rule {self.settings.rule} needs {needed} updates in a round, and only "
                f"{len(updates)} can be used: add clients, or start a run with another rule."
            )


def require_bounded(coordinates: Coordinates, update: ClientUpdate, bound: float) -> None:
    """Accepts a change that is no longer than the bound.

    Raises:
        UpdateTooLargeError: it is.
        InvalidUpdateError: the update does not fit.
    """
    norm = _norm(coordinates, update)
    if norm > bound:
        raise UpdateTooLargeError(
            f"Its change has norm {norm:.4g}, and max_update_norm of this run is {bound:g}. If the "
            "client is honest, lower its learning rate, or start a run with a larger bound."
        )


def without_too_large(
    coordinates: Coordinates, updates: Iterable[ClientUpdate], bound: float
) -> tuple[list[ClientUpdate], dict[str, str]]:
    """The updates within the bound, and by client id why the others are refused."""
    within, refused = [], {}
    for update in updates:
        try:
            require_bounded(coordinates, update, bound)
        except UpdateTooLargeError as error:
            refused[update.client_id] = str(error)
        else:
            within.append(update)
    return within, refused


def _readings(coordinates: Coordinates, updates: Iterable[ClientUpdate]) -> list[Reading]:
    return [coordinates.read(update) for update in updates]


def _norm(coordinates: Coordinates, update: ClientUpdate) -> float:
    return change_norm(coordinates.read(update), coordinates.reference)


def _clipped(
    coordinates: Coordinates,
    updates: Iterable[ClientUpdate],
    bound: float,
    kept: dict[str, float],
) -> Iterator[ClientUpdate]:
    """The updates one at a time, long ones scaled down; fills in what is kept of whom."""
    for update in updates:
        norm = _norm(coordinates, update)
        factor = min(1.0, bound / norm) if norm > 0 else 1.0
        kept[update.client_id] = factor
        yield coordinates.scale(update, factor) if factor < 1 else update


def _clip_values(bound: float, kept: Mapping[str, float]) -> dict[str, float]:
    num_clipped = sum(factor < 1 for factor in kept.values())
    return {"clip_norm": bound, "num_clipped": float(num_clipped)}


def _told(
    report: AggregationReport, kept: Mapping[str, float], values: Mapping[str, float]
) -> AggregationReport:
    clients: dict[str, Metrics] = {
        client_id: {MetricName.KEPT_SHARE: share} for client_id, share in kept.items()
    }
    return replace(report, values={**report.values, **values}, clients=clients)
