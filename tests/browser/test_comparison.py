"""What a person does who doubts that sharing pays: compare, watch, read, take the figures home."""

import csv
import re
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from backend.contracts.base_models import BaseModelRef, BuiltinModelName
from backend.contracts.clients import ClientRegister, EnrolmentKeyCreate
from backend.contracts.datasets import BUILTIN_TASK_KINDS, BuiltinDataset, BuiltinTaskName
from backend.contracts.federations import FederationCreate, FederationDetail
from tests.browser.steps import sign_in
from tests.running_platform import RunningPlatform

pytestmark = [pytest.mark.browser, pytest.mark.timeout(900)]

TASK = BuiltinTaskName.STORY_CLASSIFICATION
MODELS = {"east-clinic": BuiltinModelName.TINY_LLAMA, "west-clinic": BuiltinModelName.TINY_GEMMA}
COMPARISON_MILLISECONDS = 600_000


@pytest.fixture
def federation(platform: RunningPlatform) -> FederationDetail:
    """Two clinics with different models and a few rows each."""
    with platform.sign_in() as api:
        key = api.enrolment_keys.create(EnrolmentKeyCreate(label="doubt", max_uses=len(MODELS)))
        members = [
            api.clients.register(
                ClientRegister(
                    enrolment_key=key.secret,
                    name=name,
                    base_model=BaseModelRef(source="builtin", id=model),
                    lora_rank=4,
                    task=BUILTIN_TASK_KINDS[TASK],
                    dataset=BuiltinDataset(
                        task=TASK, seed=1, num_train=8, num_validation=4, num_test=8
                    ),
                )
            ).client
            for name, model in MODELS.items()
        ]
        return api.federations.create(
            FederationCreate(
                name="Doubtful clinics",
                global_rank=8,
                client_ids=[client.id for client in members],
            )
        )


def fill(page: Page, label: str, value: str) -> None:
    field = page.get_by_label(label, exact=True).locator("visible=true")
    field.fill(value)
    field.press("Tab")


def test_strategies_are_compared_and_judged(
    page: Page, platform: RunningPlatform, federation: FederationDetail
) -> None:
    sign_in(page, platform, f"/federation?id={federation.id}")
    page.get_by_text("Start the first run", exact=True).click()  # unfolded; only one form remains
    page.get_by_text("Compare strategies", exact=True).click()
    fill(page, "Name", "Winter")
    strategies = page.get_by_role("combobox", name=re.compile("Strategies"))
    strategies.click()
    page.get_by_role("option", name="FedIT", exact=True).click()
    page.keyboard.press("Escape")
    page.get_by_text("Add local-only and negative controls", exact=True).click()
    fill(page, "Seeds", "0, 1")
    fill(page, "Rounds", "1")
    page.get_by_text("Local training, the same for all", exact=True).click()
    fill(page, "Local steps per round", "2")
    expect(page.get_by_text("3 arms times 2 seeds: 6 runs")).to_be_visible()
    page.get_by_role("button", name="Start comparison").click()

    expect(page.get_by_role("heading", name="Winter")).to_be_visible()
    expect(page.get_by_text(re.compile(r"\d of 6 runs have ended"))).to_be_visible()
    expect(page.get_by_role("button", name="Cancel comparison")).to_be_visible()
    expect(page.get_by_text("6 of 6 runs have ended")).to_be_visible(
        timeout=COMPARISON_MILLISECONDS
    )
    expect(page.get_by_role("button", name="Cancel comparison")).to_have_count(0)
    judged = r"h2tune gains [+-]\d+\.\d ± \d+\.\d points over (local_only|untrained)"
    expect(page.get_by_text(re.compile(judged))).to_be_visible()
    expect(page.get_by_text(re.compile(r"fedit \(in groups\) gains"))).to_be_visible()
    for title in ("Accuracy against bytes", "Accuracy against seconds", "By client", "Runs"):
        expect(page.get_by_role("heading", name=title, exact=True)).to_be_visible()
    expect(page.locator(".js-plotly-plot")).to_have_count(3)
    expect(page.get_by_test_id("stException")).to_have_count(0)

    with page.expect_download() as download:
        page.get_by_role("button", name="Figures (CSV)").click()
    with Path(download.value.path()).open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3 * 2 * len(MODELS)
    assert {row["title"] for row in rows} == {"local_only", "h2tune", "fedit (in groups)"}
    assert {row["client_name"] for row in rows} == set(MODELS)
    assert all(0 <= float(row["accuracy_delivered"]) <= 1 for row in rows)
