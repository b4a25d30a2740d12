"""Steps that several stories in the browser begin with."""

from playwright.sync_api import Page, expect

from tests.running_platform import PASSWORD, RunningPlatform


def sign_in(page: Page, platform: RunningPlatform, path: str = "/") -> None:
    page.goto(platform.dashboard_url + path)
    page.get_by_label("User name").fill("admin")
    page.get_by_label("Password", exact=True).fill(PASSWORD)
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("button", name="Sign out")).to_be_visible()
