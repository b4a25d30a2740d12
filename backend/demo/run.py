"""The main job through the REST API, as a browser does it: runs over the same clients."""

import math
import time
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from backend.api_client import ApiClient
from backend.contracts.enums import RunStatus, StrategyName
from backend.contracts.federations import FederationDetail
from backend.contracts.metrics import MetricName
from backend.contracts.runs import Run, RunCreate
from backend.contracts.strategies import Params
from backend.demo.figures import DemoReport, RunMetrics, client_figures, gains, verdict
from backend.demo.progress import open_progress
from backend.demo.scenario import TRAINING, params_of, prepare_federation, same_shape_alone
from backend.demo.tables import accuracy_table, cost_table
from backend.local.administrator import USERNAME, known_password
from backend.local.errors import DemoError
from backend.local.platform import LocalPlatform
from backend.settings import Settings

POLL_SECONDS = 0.5


@dataclass(frozen=True)
class DemoOptions:
    """What the command line says.

    Args:
        strategy: compared with `local_only`.
        rounds: of each run.
        seed: of all runs.
        report_path: where to write the figures; None: nowhere.
        started_at: of the command, by `time.monotonic`.
    """

    strategy: StrategyName
    rounds: int
    seed: int
    report_path: Path | None
    started_at: float


@dataclass(frozen=True)
class _Finished:
    run: Run
    metrics: RunMetrics


def check_options(options: DemoOptions) -> None:
    """Refuses before anything is started what would fail at the end.

    Raises:
        DemoError: the strategy is the baseline, or the report has nowhere to go.
    """
    if options.strategy is StrategyName.LOCAL_ONLY:
        others = ", ".join(name for name in StrategyName if name is not options.strategy)
        raise DemoError(f"--strategy {options.strategy} is what all are compared with: {others}")
    path = options.report_path
    if path is not None and not path.absolute().parent.is_dir():
        raise DemoError(f"--report {path}: the folder {path.absolute().parent} does not exist")


def run_demo(
    platform: LocalPlatform, settings: Settings, options: DemoOptions, console: Console
) -> DemoReport:
    """Runs `local_only`, the same shape alone and the strategy, and shows how every client fared.

    Raises:
        DemoError: a run did not complete; the message has its reason.
        ApiClientError: the API refused something.
    """
    with ApiClient(platform.deployment.api_url) as api:
        api.sign_in(USERNAME, known_password(settings))
        federation = prepare_federation(api)
        members = ", ".join(client.name for client in federation.clients)
        console.print(f"Federation [bold]{federation.name}[/bold]: {members}", soft_wrap=True)

        def run(title: str, params: Params) -> _Finished:
            return _run(platform, api, federation, title, params, options, console)

        baseline = run(StrategyName.LOCAL_ONLY.value, params_of(StrategyName.LOCAL_ONLY))
        alone = same_shape_alone(options.strategy)
        control = None if alone is None else run(f"{options.strategy}, sharing nothing", alone)
        shared = run(options.strategy.value, params_of(options.strategy))
    figures = [
        client_figures(
            client,
            baseline.metrics,
            shared.metrics,
            options.strategy,
            options.rounds,
            None if control is None else control.metrics,
        )
        for client in federation.clients
    ]
    runs = [finished.run for finished in (baseline, control, shared) if finished is not None]
    report = DemoReport(
        clients=figures,
        rounds=options.rounds,
        seconds_total=round(time.monotonic() - options.started_at, 1),
        seconds_training=round(math.fsum(map(_seconds, runs)), 1),
        dashboard_url=platform.deployment.dashboard_url,
        gains=gains(figures, options.strategy, _num_test(federation)),
    )
    _show(report, federation, options.strategy, baseline, shared, console)
    if options.report_path is not None:
        report.write(options.report_path)
        console.print(f"Report written to {options.report_path}", soft_wrap=True)
    return report


def _run(
    platform: LocalPlatform,
    api: ApiClient,
    federation: FederationDetail,
    title: str,
    params: Params,
    options: DemoOptions,
    console: Console,
) -> _Finished:
    request = RunCreate(
        strategy=params,
        num_rounds=options.rounds,
        seed=options.seed,
        training=TRAINING,
    )
    run = api.runs.start(api.federations.create_run(federation.id, request).id)
    console.print(f"{title}: {platform.deployment.dashboard_url}/run?id={run.id}", soft_wrap=True)
    names = {client.id: client.name for client in federation.clients}
    progress = open_progress(console, title, names)
    cursor = 0
    try:
        while not run.status.is_terminal:
            platform.tend(POLL_SECONDS)
            live = api.runs.live(run.id, cursor)
            run, cursor = live.run, live.cursor
            progress.show(live)
    finally:
        progress.close()
    if run.status is not RunStatus.COMPLETED:
        raise DemoError(f"the run of {title} is {run.status.value}: {run.error or 'no reason'}")
    return _Finished(run, RunMetrics(api.runs.metrics(run.id)))


def _seconds(run: Run) -> float:
    if run.started_at is None or run.ended_at is None:
        raise DemoError(f"run {run.id} is {run.status.value} and has no start or end")
    return (run.ended_at - run.started_at).total_seconds()


def _num_test(federation: FederationDetail) -> list[int]:
    """Test examples of each client."""
    return [client.dataset.num_test for client in federation.clients if client.dataset is not None]


def _show(
    report: DemoReport,
    federation: FederationDetail,
    strategy: StrategyName,
    baseline: _Finished,
    shared: _Finished,
    console: Console,
) -> None:
    seconds = {
        client.name: [
            finished.metrics.total(client, MetricName.SECONDS_TRAIN)
            for finished in (baseline, shared)
        ]
        for client in federation.clients
    }
    console.print(accuracy_table(report.clients, strategy))
    console.print(cost_table(report.clients, strategy, seconds))
    console.print(verdict(report.clients, strategy, _num_test(federation)), soft_wrap=True)
    console.print(
        f"Rounds per run: {report.rounds}; {report.seconds_training:.0f} s of runs, "
        f"{report.seconds_total:.0f} s in all. Compare the runs in the browser: "
        f"{report.dashboard_url}/federation?id={federation.id}",
        soft_wrap=True,
    )
