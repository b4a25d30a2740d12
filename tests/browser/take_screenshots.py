"""Takes the pictures of the README and the docs from a real run: `make screenshots`."""

import logging
import sys
import tempfile
import time
from pathlib import Path
from uuid import UUID

from playwright.sync_api import Page, expect, sync_playwright

from backend.api_client import ApiClient
from backend.contracts.comparisons import ArmCreate, Comparison, ComparisonCreate
from backend.contracts.enums import StrategyName
from backend.contracts.federations import FederationDetail
from backend.contracts.params.base import StrategyParams
from backend.contracts.params.lora import FedItParams, LocalOnlyParams
from backend.contracts.runs import Run, RunCreate
from backend.demo.scenario import TRAINING, params_of, prepare_federation, same_shape_alone
from tests.browser.browsers import ARGUMENTS, find_browser
from tests.browser.steps import sign_in
from tests.running_platform import run_platform

NUM_ROUNDS = 10
NUM_ROUNDS_COMPARED = 2
EVALUATED_OFTEN = TRAINING.model_copy(update={"evaluate_every": 2})
"""The demo's training, with more points on the curves of accuracies."""
WIDTH, HEIGHT = 1360, 1000
LONGEST = 5000  # more than any page has
MARGIN = 4  # pixels above the heading at which a picture ends
logger = logging.getLogger(__name__)


def take(folder: Path) -> None:
    """Runs the demo's federation and photographs its pages on the way."""
    executable = find_browser()
    if executable is None:
        raise SystemExit("no browser: install chromium")
    with (
        tempfile.TemporaryDirectory() as home,
        run_platform(Path(home)) as platform,
        platform.sign_in() as api,
        sync_playwright() as playwright,
    ):
        browser = playwright.chromium.launch(executable_path=executable, args=ARGUMENTS)
        page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT})
        page.set_default_timeout(180_000)  # a machine that trains draws slowly
        expect.set_options(timeout=180_000)
        sign_in(page, platform)
        federation = prepare_federation(api)
        _start(api, federation.id, LocalOnlyParams(), wait_for_round=NUM_ROUNDS + 2)
        alone = same_shape_alone(StrategyName.H2TUNE)
        if alone is not None:
            _start(api, federation.id, alone, wait_for_round=NUM_ROUNDS + 2)
        run = _start(api, federation.id, params_of(StrategyName.H2TUNE), wait_for_round=7)
        run_url = f"{platform.dashboard_url}/run?id={run.id}"
        _photograph(page, run_url, folder / "live-run.png", until="Training loss")
        _wait(api, run, NUM_ROUNDS + 2)
        for path, name, until in [
            (f"run?id={run.id}", "finished-run.png", "Communication"),
            (f"federation?id={federation.id}", "federation.png", "People"),
            ("clients", "clients.png", None),
            ("new-federation", "new-federation.png", None),
        ]:
            _photograph(page, f"{platform.dashboard_url}/{path}", folder / name, until)
        _photograph_privacy(page, folder / "privacy.png")
        comparison = _compare(api, federation)
        url = f"{platform.dashboard_url}/comparison?id={comparison.id}"
        _photograph(page, url, folder / "comparison.png", until="Runs")
        browser.close()


def _compare(api: ApiClient, federation: FederationDetail) -> Comparison:
    """A small comparison, waited for to its end."""
    request = ComparisonCreate(
        name="Does sharing pay?",
        arms=[
            ArmCreate(strategy=LocalOnlyParams()),
            ArmCreate(strategy=params_of(StrategyName.H2TUNE)),
            ArmCreate(
                strategy=params_of(StrategyName.H2TUNE).model_copy(update={"control": "permuted"}),
                label="permuted",
            ),
            ArmCreate(strategy=FedItParams(group_by="architecture")),
        ],
        seeds=[0, 1, 2],
        num_rounds=NUM_ROUNDS_COMPARED,
        training=EVALUATED_OFTEN,
    )
    comparison = api.comparisons.start(api.comparisons.create(federation.id, request).id)
    while not comparison.status.is_terminal:
        time.sleep(1)
        comparison = api.comparisons.get(comparison.id)
    return comparison


def _photograph_privacy(page: Page, path: Path) -> None:
    """The form of a new federation with differential privacy switched on."""
    page.set_viewport_size({"width": WIDTH, "height": HEIGHT + 40})  # to the end of that part
    page.get_by_text("Privacy", exact=True).click()
    page.get_by_text("Differential privacy", exact=True).click()
    consequence = page.get_by_text("the privacy loss of every client")
    expect(consequence).to_be_visible()
    consequence.scroll_into_view_if_needed()
    page.wait_for_timeout(2_000)
    page.screenshot(path=path)


def _start(
    api: ApiClient, federation_id: UUID, strategy: StrategyParams, wait_for_round: int
) -> Run:
    request = RunCreate(strategy=strategy, num_rounds=NUM_ROUNDS, training=EVALUATED_OFTEN)
    run = api.runs.start(api.federations.create_run(federation_id, request).id)
    _wait(api, run, wait_for_round)
    return run


def _wait(api: ApiClient, run: Run, round_number: int) -> None:
    """Until a round is open; a number above the last one means: until the end."""
    while True:
        now = api.runs.get(run.id)
        if now.round_number >= round_number or now.status.is_terminal:
            logger.info("%s: %s, round %d", now.strategy.name, now.status, now.round_number)
            return
        time.sleep(0.5)


def _photograph(page: Page, url: str, path: Path, until: str | None = None) -> None:
    """One page; from its top to the heading `until`, or as much as fits a screen."""
    height = HEIGHT if until is None else LONGEST  # pages scroll within themselves
    page.set_viewport_size({"width": WIDTH, "height": height})
    page.goto(url)
    expect(page.get_by_role("button", name="Sign out")).to_be_visible()
    # Of the restored session, not of the page that asks for a password.
    expect(page.get_by_role("button", name="Sign in")).to_have_count(0)
    page.wait_for_timeout(3_000)
    skeletons = page.get_by_test_id("stSkeleton")
    expect(skeletons).to_have_count(0)  # charts are there
    page.wait_for_timeout(2_000)  # and have faded in
    if until is not None:
        box = page.get_by_role("heading", name=until, exact=True).bounding_box()
        if box is None:
            raise SystemExit(f"{url} has no heading {until}")
        height = round(box["y"]) - MARGIN
    path.parent.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=path, clip={"x": 0, "y": 0, "width": WIDTH, "height": height})


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    take(Path(sys.argv[1]))
