"""A real browser in front of the real platform."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.browser.browsers import ARGUMENTS, NAMES, find_browser
from tests.running_platform import RunningPlatform, run_platform


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    path = find_browser()
    if path is None:
        pytest.skip(f"no browser: install chromium (looked for {', '.join(NAMES)})")
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
        yield started
        started.close()


@pytest.fixture(scope="module")
def platform(
    browser: Browser, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningPlatform]:
    """`fedbraid up` with a fresh home; started only when there is a browser to look at it."""
    with run_platform(tmp_path_factory.mktemp("home")) as started:
        yield started


@pytest.fixture
def page(browser: Browser, tmp_path: Path) -> Iterator[Page]:
    context = browser.new_context(
        viewport={"width": 1360, "height": 1000},
        timezone_id="Asia/Tokyo",
        accept_downloads=True,
    )
    page = context.new_page()
    page.set_default_timeout(30_000)
    expect.set_options(timeout=30_000)  # the default of 5 seconds is short where others work too
    yield page
    page.screenshot(path=tmp_path / "last.png")
    context.close()
