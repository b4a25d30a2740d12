"""Comparisons of the platform in memory: results in any state one likes."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

from fastapi import FastAPI, Response

from backend.contracts.common import Page
from backend.contracts.comparisons import (
    Accuracies,
    Arm,
    ArmResult,
    ClientResult,
    Comparison,
    ComparisonCreate,
    ComparisonResults,
    ComparisonRun,
)
from backend.contracts.enums import RunStatus
from backend.contracts.evidence import Interval, Spread, Verdict, spread
from backend.contracts.federations import FederationDetail

if TYPE_CHECKING:
    from tests.dashboard.fake_platform import FakePlatform


def add_comparison(
    platform: FakePlatform,
    federation: FederationDetail,
    create: ComparisonCreate,
    status: RunStatus = RunStatus.CREATED,
) -> ComparisonResults:
    """A comparison whose runs are all in one state; a completed one has results."""
    arms = [
        Arm(name=arm.name, strategy=arm.strategy, privacy=arm.privacy, training=arm.training)
        for arm in create.all_arms()
    ]
    runs = [
        ComparisonRun(
            run_id=uuid4(), arm=arm.name, seed=seed, status=status, round_number=1, error=None
        )
        for arm in arms
        for seed in create.seeds
    ]
    seeds = create.seeds if status is RunStatus.COMPLETED else []
    results = ComparisonResults(
        comparison=Comparison(
            id=uuid4(),
            federation_id=federation.id,
            name=create.name,
            arms=arms,
            seeds=create.seeds,
            num_rounds=create.num_rounds,
            training=create.training,
            status=status,
            num_runs=dict(Counter(run.status for run in runs)),
            created_at=datetime.now(UTC),
            started_at=None,
            ended_at=None,
        ),
        best_local="local_only" if seeds else None,
        arms=[arm_result(arm, federation, seeds, place) for place, arm in enumerate(arms)],
        runs=runs,
    )
    platform.comparisons[results.comparison.id] = results
    return results


def arm_result(arm: Arm, federation: FederationDetail, seeds: list[int], place: int) -> ArmResult:
    """Plausible results: each further arm is a little better and dearer than the one before."""

    def around(value: float) -> Spread | None:
        return spread([value + 0.01 * i for i in range(len(seeds))]) if seeds else None

    def accuracies(offset: float) -> Accuracies:
        top = 0.4 + 0.02 * place + offset
        return Accuracies(
            untrained=around(0.25), after_training=around(top - 0.02), delivered=around(top)
        )

    def cost(value: float) -> Spread | None:
        return spread([value] * len(seeds)) if seeds else None

    shares = arm.strategy.name != "local_only"
    judged = bool(seeds) and shares and arm.control == "none"
    gain = Interval(mean=0.05, half_width=0.02, n=len(seeds)) if judged else None
    return ArmResult(
        name=arm.name,
        title=arm.title,
        strategy=arm.strategy,
        is_control=arm.control != "none",
        seeds=seeds,
        clients=[
            ClientResult(
                client_id=client.id, client_name=client.name, **accuracies(0.05 * i).model_dump()
            )
            for i, client in enumerate(federation.clients)
        ],
        overall=accuracies(0.05),
        bytes_up=cost(2.0**place * 10_000 if shares else 0),
        bytes_down=cost(2.0**place * 10_000 if shares else 0),
        seconds_train=cost(10.0 + place),
        over_local_only=gain,
        gain=gain,
        over_control=gain,
        verdict=Verdict.TRANSFER if judged else None,
        sentence=f"Transfer: {arm.title} gains +5.0 ± 2.0 points over local_only."
        if judged
        else "",
        is_on_bytes_front=arm.control == "none",
        is_on_seconds_front=arm.control == "none",
    )


def set_status(platform: FakePlatform, comparison_id: UUID, status: RunStatus) -> Comparison:
    """Moves a comparison with all its runs."""
    results = platform.comparisons[comparison_id]
    runs = [run.model_copy(update={"status": status}) for run in results.runs]
    comparison = results.comparison.model_copy(
        update={"status": status, "num_runs": dict(Counter(run.status for run in runs))}
    )
    platform.comparisons[comparison_id] = results.model_copy(
        update={"comparison": comparison, "runs": runs}
    )
    return comparison


def add_comparison_routes(
    app: FastAPI, platform: FakePlatform, guards: list[Any], route: Any, find: Any
) -> None:
    """The endpoints that the dashboard calls."""

    @route(app, "GET", "/federations/{federation_id}/comparisons", guards)
    def comparisons(federation_id: UUID) -> Page[Comparison]:
        found = [results.comparison for results in platform.comparisons.values()]
        return Page(items=[c for c in found[::-1] if c.federation_id == federation_id])

    @route(app, "POST", "/federations/{federation_id}/comparisons", guards, 201)
    def create(federation_id: UUID, body: ComparisonCreate) -> Comparison:
        if platform.run_refusal is not None:
            raise platform.run_refusal
        federation = find(platform.federations, federation_id)
        return add_comparison(platform, federation, body).comparison

    @route(app, "POST", "/comparisons/{comparison_id}/start", guards, 202)
    def start(comparison_id: UUID) -> Comparison:
        return set_status(platform, comparison_id, RunStatus.QUEUED)

    @route(app, "POST", "/comparisons/{comparison_id}/cancel", guards, 202)
    def cancel(comparison_id: UUID) -> Comparison:
        return set_status(platform, comparison_id, RunStatus.CANCELLED)

    @route(app, "GET", "/comparisons/{comparison_id}/results", guards)
    def results(comparison_id: UUID) -> ComparisonResults:
        find([r.comparison for r in platform.comparisons.values()], comparison_id)
        return platform.comparisons[comparison_id]

    @route(app, "GET", "/comparisons/{comparison_id}/results.csv", guards)
    def as_csv(comparison_id: UUID) -> Response:
        return Response(f"arm,seed\n{comparison_id},0\n", media_type="text/csv")
