"""What a person does on the first day: sign in, add clients, start, watch, download."""

import io
import re
import zipfile
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.browser.steps import sign_in
from tests.running_platform import RunningPlatform

pytestmark = [pytest.mark.browser, pytest.mark.timeout(900)]

RUN_MILLISECONDS = 300_000


def choose(page: Page, label: str, option: str) -> None:
    page.get_by_role("combobox", name=label).click()
    page.get_by_role("option", name=re.compile(option)).click()


def set_number(page: Page, label: str, value: str) -> None:
    field = page.get_by_label(label, exact=True)
    field.fill(value)
    field.press("Tab")


def add_client(page: Page, name: str, model: str, rank: str) -> None:
    page.get_by_label("Name", exact=True).fill(name)
    choose(page, "Base model", model)
    set_number(page, "LoRA rank", rank)
    set_number(page, "Training rows", "16")
    set_number(page, "Test rows", "16")
    page.get_by_role("button", name="Add client").click()
    expect(page.get_by_text(f"{name} is ready to join a federation.")).to_be_visible()


def test_wrong_password_is_refused(page: Page, platform: RunningPlatform) -> None:
    page.goto(platform.dashboard_url)
    page.get_by_label("User name").fill("admin")
    page.get_by_label("Password", exact=True).fill("not the password")
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_test_id("stAlert")).to_contain_text("password")
    expect(page.get_by_role("button", name="Sign out")).to_have_count(0)


def test_first_day(page: Page, platform: RunningPlatform) -> None:
    sign_in(page, platform)
    expect(page.get_by_text("No federation yet")).to_be_visible()
    expect(page.get_by_text("Deploy", exact=True)).to_have_count(0)

    page.get_by_role("link", name="Clients").click()
    page.get_by_role("tab", name="Add a built-in client").click()
    add_client(page, "north-clinic", "tiny_llama", "4")
    add_client(page, "south-practice", "tiny_gemma", "8")

    page.get_by_role("link", name="New federation").click()
    members = page.get_by_role("combobox", name=re.compile("Members"))
    expect(members).to_be_visible()  # before it, the field of the page left behind is there
    expect(page.get_by_label("Name", exact=True)).to_have_count(1)
    page.get_by_label("Name", exact=True).fill("Two clinics")
    for name in ("north-clinic", "south-practice"):
        members.click()
        page.get_by_role("option", name=re.compile(name)).click()
    page.keyboard.press("Escape")
    set_number(page, "Rounds", "2")
    page.get_by_text("Local training", exact=True).click()
    set_number(page, "Local steps per round", "3")
    expect(page.get_by_text(re.compile(r"\d+ common slots"))).to_be_visible()
    page.get_by_role("button", name="Create and start").click()

    expect(page.get_by_role("heading", name="H2Tune")).to_be_visible()
    expect(page.get_by_text(re.compile(r"2 clients .* JST"))).to_be_visible()
    expect(page.get_by_text("The adapters are ready below.")).to_be_visible(
        timeout=RUN_MILLISECONDS
    )
    for title in ("Accuracy", "Training loss", "Sparsity of the shared matrices", "Communication"):
        expect(page.get_by_role("heading", name=title)).to_be_visible()
    expect(page.locator(".js-plotly-plot").first).to_be_visible()
    expect(page.get_by_text("Payload since the start (", exact=False).first).to_be_visible()
    expect(page.get_by_test_id("stException")).to_have_count(0)

    with page.expect_download() as download:
        page.get_by_role("button", name=re.compile("north-clinic")).click()
    content = Path(download.value.path()).read_bytes()
    names = zipfile.ZipFile(io.BytesIO(content)).namelist()
    assert any(name.endswith("adapter_model.safetensors") for name in names)
    assert any(name.endswith("adapter_config.json") for name in names)

    page.get_by_role("link", name="Two clinics").click()
    expect(page.get_by_role("link", name="Local only, seed 0, 2 rounds")).to_be_visible()


def test_a_reload_keeps_the_session_and_signing_out_ends_it(
    page: Page, platform: RunningPlatform
) -> None:
    sign_in(page, platform, "/clients")
    expect(page.get_by_role("heading", name="Clients")).to_be_visible()
    assert "token" not in page.url
    page.reload()
    expect(page.get_by_role("heading", name="Clients")).to_be_visible()
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_text("You are signed out.")).to_be_visible()
    page.reload()
    expect(page.get_by_label("User name")).to_be_visible()
    page.wait_for_timeout(2000)
    expect(page.get_by_role("button", name="Sign out")).to_have_count(0)
