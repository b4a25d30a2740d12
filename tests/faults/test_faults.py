"""Faults in the running platform, a few of them; `make test-faults` injects hundreds."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from backend.contracts.enums import EventKind, RoundKind, RoundStatus, RunStatus, UpdateStatus
from tests.faults.campaign import Campaign
from tests.faults.outcome import Outcome, Update, problems_of, problems_of_corrupted
from tests.faults.plan import PROGRAMS, Corruption, Crash, JobsAgain, Kill, draw_plan
from tests.faults.site import open_site

SEEDS = (35, 10)
"""Together: kills of three programs, jobs and calls repeated, both services, a damaged update."""
PART = (1, "managed-0")
SOUND = Outcome(
    status=RunStatus.COMPLETED,
    error=None,
    state_sha256="ab",
    rounds={1: RoundStatus.CLOSED},
    updates={
        PART: Update(UpdateStatus.ACCEPTED, "cd", None, 1, RoundKind.TRAIN, 2, (2,)),
        (1, "remote"): Update(UpdateStatus.ACCEPTED, "ef", None, 1, RoundKind.TRAIN, 1, (1,)),
    },
    events=Counter({(EventKind.ROUND_AGGREGATED, 1, None): 1}),
    repeated_metrics=[],
)


@pytest.mark.timeout(1200)  # most of it for the imports, on a machine that does much else
def test_a_disturbed_federation_ends_as_an_undisturbed_one(tmp_path: Path) -> None:
    said: list[str] = []
    with open_site(tmp_path / "home") as site:
        done = Campaign(site, said.append).run(SEEDS, num_faults=1000)
        assert not [each for each in done if each.problems], "\n".join([*said, site.log()])
    assert sum(each.num_injected for each in done) >= 8, said


def test_a_seed_decides_about_all_faults_and_seeds_cover_all_kinds() -> None:
    assert draw_plan(7) == draw_plan(7) != draw_plan(8)
    faults = [planned.fault for seed in range(60) for planned in draw_plan(seed).faults]
    assert {fault.program for fault in faults if isinstance(fault, Kill)} == set(PROGRAMS)
    assert {type(fault) for fault in faults} >= {Kill, Crash, JobsAgain, Corruption}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"status": RunStatus.FAILED}, "the run is failed"),
        ({"state_sha256": "00"}, "final state"),
        ({"updates": {}}, "update (1, 'managed-0')"),
        (
            {"events": Counter({(EventKind.ROUND_AGGREGATED, 1, None): 2})},
            "2 times round_aggregated",
        ),
        ({"repeated_metrics": ["loss of round 1"]}, "recorded twice"),
        (
            {"updates": {**SOUND.updates, PART: replace(SOUND.updates[PART], shared="00")}},
            "update (1, 'managed-0')",
        ),
        (
            {"updates": {**SOUND.updates, PART: replace(SOUND.updates[PART], fence=3)}},
            "attempts of (1, 'managed-0')",
        ),
    ],
)
def test_the_judge_sees_every_difference(change: dict[str, object], named: str) -> None:
    assert problems_of(SOUND, SOUND) == []
    problems = problems_of(replace(SOUND, **change), SOUND)  # type: ignore[arg-type]
    assert any(problem.startswith(named) for problem in problems), problems


def test_a_damaged_update_must_be_refused_by_name() -> None:
    refused = replace(
        SOUND,
        updates={
            **SOUND.updates,
            PART: replace(SOUND.updates[PART], status=UpdateStatus.REFUSED, aggregated_in=None),
        },
        events=SOUND.events + Counter({(EventKind.UPDATE_REFUSED, *PART): 1}),
    )
    assert problems_of_corrupted(refused, PART, 1) == []
    assert problems_of_corrupted(SOUND, PART, 1)
    failed = replace(refused, status=RunStatus.FAILED, error="managed-0 was refused")
    assert problems_of_corrupted(failed, PART, None) == []
    assert problems_of_corrupted(refused, PART, None)
