"""What a comparison has found: figures of completed runs over seeds, differences, verdicts."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from uuid import UUID

from sqlalchemy.orm import Session

from backend.comparisons import repository
from backend.comparisons.service import describe, require_comparison
from backend.comparisons.verdicts import sentence_of
from backend.contracts.comparisons import (
    SAME_TRAINING,
    UNTRAINED,
    Accuracies,
    Arm,
    ArmResult,
    ClientResult,
    ComparisonResults,
    ComparisonRun,
    ResultRow,
)
from backend.contracts.enums import StrategyName
from backend.contracts.evidence import (
    Interval,
    Spread,
    Verdict,
    judge,
    paired,
    pareto_front,
    spread,
)
from backend.contracts.metrics import MetricName
from backend.db import models
from backend.federations import service as federations

BySeed = Mapping[int, float]
BEFORE = MetricName.ACCURACY_BEFORE_TRAINING
AFTER = MetricName.ACCURACY_AFTER_TRAINING
DELIVERED = MetricName.ACCURACY_DELIVERED


@dataclass(frozen=True)
class Figures:
    """Figures of the completed runs: (arm, seed, client, name) -> value."""

    values: Mapping[tuple[str, int, UUID, MetricName], float]
    clients: Mapping[UUID, str]
    completed: Mapping[str, list[int]]  # arm -> seeds in their order

    def of_client(self, arm: str, client: UUID, name: MetricName) -> dict[int, float]:
        """One client's value by seed."""
        found = ((seed, self.values.get((arm, seed, client, name))) for seed in self.seeds(arm))
        return {seed: value for seed, value in found if value is not None}

    def over_clients(self, arm: str, name: MetricName) -> dict[int, list[float]]:
        """The clients' values by seed, for seeds in which every client has one."""
        per_client = [self.of_client(arm, client, name) for client in self.clients]
        return {
            seed: [values[seed] for values in per_client]
            for seed in self.seeds(arm)
            if all(seed in values for values in per_client)
        }

    def mean(self, arm: str, name: MetricName) -> dict[int, float]:
        """The mean over clients by seed."""
        return {seed: fmean(values) for seed, values in self.over_clients(arm, name).items()}

    def total(self, arm: str, name: MetricName) -> dict[int, float]:
        """The sum over clients by seed."""
        return {seed: sum(values) for seed, values in self.over_clients(arm, name).items()}

    def seeds(self, arm: str) -> Sequence[int]:
        """Seeds of the arm's completed runs."""
        return self.completed.get(arm, [])


def get_results(session: Session, comparison_id: UUID) -> ComparisonResults:
    """What a comparison has found so far; only completed runs count.

    Raises:
        NotFoundError: no such comparison.
    """
    row = require_comparison(session, comparison_id)
    runs = repository.find_runs(session, [comparison_id])
    comparison = describe(row, runs)
    figures = _figures(session, row, runs)
    best_local, alone = _best_local(comparison.arms, figures)
    fronts = _Fronts.of(comparison.arms, figures)
    court = _Judge(comparison.arms, figures, comparison.status.is_terminal)
    return ComparisonResults(
        comparison=comparison,
        best_local=best_local,
        arms=[
            _arm_result(
                arm,
                figures,
                court.judge(arm, best_local, alone),
                court.over_local_only(arm),
                fronts,
            )
            for arm in comparison.arms
        ],
        runs=[
            ComparisonRun(
                run_id=run.id,
                arm=str(run.arm),
                seed=run.seed,
                status=run.status,
                round_number=run.round_number,
                error=run.error,
            )
            for run in _ordered(row, runs)
        ],
    )


def get_rows(session: Session, comparison_id: UUID) -> list[ResultRow]:
    """Every figure: one row for each arm, seed and client, in the order in which runs began.

    Raises:
        NotFoundError: no such comparison.
    """
    comparison = require_comparison(session, comparison_id)
    runs = repository.find_runs(session, [comparison_id])
    figures = _figures(session, comparison, runs)
    arms = {arm["name"]: Arm.model_validate(arm) for arm in comparison.arms}

    def row(run: models.Run, client_id: UUID, client_name: str) -> ResultRow:
        arm = arms[str(run.arm)]

        def value(name: MetricName) -> float | None:
            return figures.values.get((arm.name, run.seed, client_id, name))

        return ResultRow(
            arm=arm.name,
            title=arm.title,
            strategy=arm.strategy.name.value,
            seed=run.seed,
            run_id=run.id,
            status=run.status,
            client_id=client_id,
            client_name=client_name,
            accuracy_untrained=value(BEFORE),
            accuracy_after_training=value(AFTER),
            accuracy_delivered=value(DELIVERED),
            bytes_up=value(MetricName.BYTES_UP),
            bytes_down=value(MetricName.BYTES_DOWN),
            seconds_train=value(MetricName.SECONDS_TRAIN),
            error=run.error,
        )

    return [
        row(run, client_id, name)
        for run in _ordered(comparison, runs)
        for client_id, name in figures.clients.items()
    ]


def _figures(
    session: Session, comparison: models.Comparison, runs: Sequence[models.Run]
) -> Figures:
    found = repository.find_figures(session, comparison.id)
    by_id = {run.id: run for run in runs}
    measured = {figure.run_id for figure in found}
    completed: dict[str, list[int]] = defaultdict(list)
    for run in _ordered(comparison, runs):
        if run.id in measured:
            completed[str(run.arm)].append(run.seed)
    members = federations.get_row(session, comparison.federation_id).clients
    return Figures(
        values={
            (str(run.arm), run.seed, figure.client_id, figure.name): figure.value
            for figure in found
            for run in [by_id[figure.run_id]]
        },
        clients={
            client.id: client.name for client in sorted(members, key=lambda c: c.name.lower())
        },
        completed=completed,
    )


def _ordered(comparison: models.Comparison, runs: Iterable[models.Run]) -> list[models.Run]:
    arms = {arm["name"]: place for place, arm in enumerate(comparison.arms)}
    seeds = {seed: place for place, seed in enumerate(comparison.seeds)}
    return sorted(runs, key=lambda run: (arms[str(run.arm)], seeds[run.seed]))


def _best_local(arms: Sequence[Arm], figures: Figures) -> tuple[str | None, BySeed]:
    """The best arm in which clients are alone, by its mean; the untrained models are one too."""
    candidates: dict[str, BySeed] = {
        arm.name: figures.mean(arm.name, DELIVERED) for arm in arms if arm.is_local
    }
    for name in list(candidates):
        candidates.setdefault(UNTRAINED, figures.mean(name, BEFORE))
    measured = {name: values for name, values in candidates.items() if values}
    best = max(measured, key=lambda name: fmean(measured[name].values()), default=None)
    return best, {} if best is None else measured[best]


@dataclass(frozen=True)
class _Fronts:
    """Names of the arms on the Pareto fronts; negative controls are no candidates."""

    bytes: set[str]
    seconds: set[str]

    @classmethod
    def of(cls, arms: Sequence[Arm], figures: Figures) -> "_Fronts":
        by_bytes, by_seconds = {}, {}
        for arm in arms:
            accuracy = figures.mean(arm.name, DELIVERED)
            up = figures.total(arm.name, MetricName.BYTES_UP)
            down = figures.total(arm.name, MetricName.BYTES_DOWN)
            seconds = figures.total(arm.name, MetricName.SECONDS_TRAIN)
            if arm.control != "none" or not accuracy:
                continue
            value = fmean(accuracy.values())
            if up and down:
                by_bytes[arm.name] = (fmean(up.values()) + fmean(down.values()), value)
            if seconds:
                by_seconds[arm.name] = (fmean(seconds.values()), value)
        return cls(pareto_front(by_bytes), pareto_front(by_seconds))


def _arm_result(
    arm: Arm,
    figures: Figures,
    judgement: "_Judgement",
    over_local_only: Interval | None,
    fronts: _Fronts,
) -> ArmResult:
    def over_clients(name: MetricName) -> Spread | None:
        return _spread(figures.mean(arm.name, name))

    def total(name: MetricName) -> Spread | None:
        return _spread(figures.total(arm.name, name))

    def of_client(client_id: UUID, name: MetricName) -> Spread | None:
        return _spread(figures.of_client(arm.name, client_id, name))

    return ArmResult(
        name=arm.name,
        title=arm.title,
        strategy=arm.strategy,
        is_control=arm.control != "none",
        seeds=list(figures.seeds(arm.name)),
        clients=[
            ClientResult(
                client_id=client_id,
                client_name=name,
                untrained=of_client(client_id, BEFORE),
                after_training=of_client(client_id, AFTER),
                delivered=of_client(client_id, DELIVERED),
            )
            for client_id, name in figures.clients.items()
        ],
        overall=Accuracies(
            untrained=over_clients(BEFORE),
            after_training=over_clients(AFTER),
            delivered=over_clients(DELIVERED),
        ),
        bytes_up=total(MetricName.BYTES_UP),
        bytes_down=total(MetricName.BYTES_DOWN),
        seconds_train=total(MetricName.SECONDS_TRAIN),
        over_local_only=over_local_only,
        gain=judgement.gain,
        over_control=judgement.over_control,
        verdict=judgement.verdict,
        sentence=judgement.sentence,
        is_on_bytes_front=arm.name in fronts.bytes,
        is_on_seconds_front=arm.name in fronts.seconds,
    )


@dataclass(frozen=True)
class _Judgement:
    """What is said of one arm."""

    gain: Interval | None = None
    over_control: Interval | None = None
    verdict: Verdict | None = None
    sentence: str = ""


@dataclass(frozen=True)
class _Judge:
    """Compares arms with the best local one and with their permuted controls.

    While runs go on, an arm whose permuted control has no result yet has no verdict.
    """

    arms: Sequence[Arm]
    figures: Figures
    has_ended: bool

    def over_local_only(self, arm: Arm) -> Interval | None:
        """Difference to the local arm, preferably one that trains as the others, to the end."""
        named = [a for a in self.arms if a.strategy.name is StrategyName.LOCAL_ONLY]
        if not named or arm in named:
            return None
        local_only = min(
            named, key=lambda local: (local.training != SAME_TRAINING, local.is_stopped_early)
        ).name
        return paired(self._delivered(arm.name), self._delivered(local_only))

    def judge(self, arm: Arm, best_local: str | None, alone: BySeed) -> _Judgement:
        """The verdict on one arm; none on local arms and controls."""
        if best_local is None or arm.control != "none" or arm.is_local:
            return _Judgement()
        gain = paired(self._delivered(arm.name), alone)
        permuted = [o.name for o in self.arms if o.control == "permuted" and o.is_control_of(arm)]
        over_control = (
            paired(self._delivered(arm.name), self._delivered(permuted[0])) if permuted else None
        )
        is_due = over_control is not None or not permuted or self.has_ended
        if gain is None or not is_due:
            return _Judgement(gain, over_control)
        verdict = judge(gain, over_control)
        words = sentence_of(arm.title, verdict, gain, best_local, over_control)
        return _Judgement(gain, over_control, verdict, words)

    def _delivered(self, arm: str) -> BySeed:
        return self.figures.mean(arm, DELIVERED)


def _spread(by_seed: BySeed) -> Spread | None:
    return spread(list(by_seed.values())) if by_seed else None
