"""What a comparison has found, with every expected number derived by hand."""

import csv
import io
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy.orm import Session

from tests.backend.comparisons.comparing import (
    ARMS,
    complete,
    fail,
    make_comparison,
    runs_of,
)
from tests.factories import Caller, make_client, make_federation, unchanged

# (arm, seed) -> delivered accuracies of the two clients. Means over clients:
#   local_only       .50  .52  .54      h2tune .60  .63  .63      permuted .51  .50  .52
DELIVERED = {
    ("local_only", 0): (0.40, 0.60),
    ("local_only", 1): (0.42, 0.62),
    ("local_only", 2): (0.44, 0.64),
    ("h2tune", 0): (0.55, 0.65),
    ("h2tune", 1): (0.56, 0.70),
    ("h2tune", 2): (0.58, 0.68),
    ("h2tune_permuted", 0): (0.41, 0.61),
    ("h2tune_permuted", 1): (0.40, 0.60),
    ("h2tune_permuted", 2): (0.42, 0.62),
}
COSTS = {
    "local_only": {"bytes_up": 0.0, "bytes_down": 0.0, "seconds_train": 2.0},
    "h2tune": {"bytes_up": 100.0, "bytes_down": 50.0, "seconds_train": 3.0},
    "h2tune_alone": {"bytes_up": 100.0, "bytes_down": 50.0, "seconds_train": 3.0},
    "h2tune_permuted": {"bytes_up": 90.0, "bytes_down": 40.0, "seconds_train": 1.0},
}

GUARDED = {"guard": "validation"}


@pytest.fixture
def federation(operator: Caller) -> dict[str, Any]:
    first, _ = make_client(operator, name="a-clinic")
    second, _ = make_client(operator, name="B-clinic")
    return make_federation(operator, first, second)


def play(
    session: Session,
    federation: dict[str, Any],
    comparison: dict[str, Any],
    delivered: dict[tuple[str, int], tuple[float, float]],
) -> None:
    ids = {client["name"]: UUID(client["id"]) for client in federation["clients"]}
    runs = runs_of(session, comparison)
    for (arm, seed), (first, second) in delivered.items():
        complete(
            session,
            runs[arm, seed],
            {
                ids["a-clinic"]: (0.2, first - 0.1, first),
                ids["B-clinic"]: (0.4, second - 0.1, second),
            },
            **COSTS[arm.removesuffix("_lr_1e_3").removesuffix("_stopped_early")],
        )


def results_of(caller: Caller, comparison: dict[str, Any]) -> dict[str, Any]:
    response = caller.get(f"/comparisons/{comparison['id']}/results")
    assert response.status_code == 200, response.text
    return dict(response.json())


@pytest.fixture
def finished(operator: Caller, federation: dict[str, Any], session: Session) -> dict[str, Any]:
    comparison = make_comparison(operator, federation, seeds=[0, 1, 2])
    play(session, federation, comparison, DELIVERED)
    return comparison


def arm_of(results: dict[str, Any], name: str) -> dict[str, Any]:
    return next(arm for arm in results["arms"] if arm["name"] == name)


def test_means_and_spreads_are_over_seeds(operator: Caller, finished: dict[str, Any]) -> None:
    arm = arm_of(results_of(operator, finished), "local_only")
    first, second = arm["clients"]
    assert [first["client_name"], second["client_name"]] == ["a-clinic", "B-clinic"]
    # .40 .42 .44: mean .42, squared deviations .0004 + 0 + .0004 over 2: sd .02
    assert first["delivered"] == pytest.approx({"mean": 0.42, "sd": 0.02, "n": 3})
    assert first["after_training"] == pytest.approx({"mean": 0.32, "sd": 0.02, "n": 3})
    assert first["untrained"] == pytest.approx({"mean": 0.2, "sd": 0.0, "n": 3})
    assert arm["overall"]["delivered"] == pytest.approx({"mean": 0.52, "sd": 0.02, "n": 3})
    assert arm["overall"]["untrained"] == pytest.approx({"mean": 0.3, "sd": 0.0, "n": 3})
    assert arm["seeds"] == [0, 1, 2]


def test_costs_are_totals_over_clients_and_rounds(
    operator: Caller, finished: dict[str, Any]
) -> None:
    arm = arm_of(results_of(operator, finished), "h2tune")
    # two clients, two rounds
    assert arm["bytes_up"] == pytest.approx({"mean": 400.0, "sd": 0.0, "n": 3})
    assert arm["bytes_down"] == pytest.approx({"mean": 200.0, "sd": 0.0, "n": 3})
    assert arm["seconds_train"] == pytest.approx({"mean": 12.0, "sd": 0.0, "n": 3})


def test_differences_are_paired_and_the_verdict_follows(
    operator: Caller, finished: dict[str, Any]
) -> None:
    results = results_of(operator, finished)
    assert results["best_local"] == "local_only"
    arm = arm_of(results, "h2tune")
    # .10 .11 .09: mean .10, sd .01, half width 4.303 * .01 / sqrt(3) = .02484
    assert arm["gain"] == pytest.approx({"mean": 0.10, "half_width": 0.02484, "n": 3}, abs=1e-5)
    assert arm["over_local_only"] == arm["gain"]
    # .09 .13 .11: mean .11, sd .02, half width .04969
    assert arm["over_control"] == pytest.approx(
        {"mean": 0.11, "half_width": 0.04969, "n": 3}, abs=1e-5
    )
    assert arm["verdict"] == "transfer"
    assert arm["sentence"] == (
        "Transfer: h2tune gains +10.0 ± 2.5 points over local_only and +11.0 ± 5.0 points over its "
        "permuted control; both 95 % intervals exclude zero."
    )
    for name in ("local_only", "h2tune_permuted"):
        silent = arm_of(results, name)
        assert (silent["verdict"], silent["sentence"], silent["gain"]) == (None, "", None)
    control = arm_of(results, "h2tune_permuted")
    assert control["is_control"]
    # .01 -.02 -.02: mean -.01
    assert control["over_local_only"]["mean"] == pytest.approx(-0.01)


def test_a_gain_is_measured_against_the_best_of_several_local_arms(
    operator: Caller, federation: dict[str, Any], session: Session
) -> None:
    tuned = ARMS[0] | {"label": "lr_1e_3", "training": {"learning_rate": 1e-3}}
    arms = [tuned, *ARMS]
    comparison = make_comparison(operator, federation, arms=arms, seeds=[0, 1, 2])
    better = {("local_only_lr_1e_3", seed): (0.55, 0.65 + 0.01 * seed) for seed in (0, 1, 2)}
    play(session, federation, comparison, DELIVERED | better)
    results = results_of(operator, comparison)
    assert results["best_local"] == "local_only_lr_1e_3"
    arm = arm_of(results, "h2tune")
    # means over clients .60 .605 .61; h2tune .60 .63 .63: differences .0 .025 .02
    assert arm["gain"]["mean"] == pytest.approx(0.015)
    assert arm["over_local_only"]["mean"] == pytest.approx(0.10), "the one that trains as h2tune"
    assert arm["verdict"] == "no gain shown"
    assert "over local_only_lr_1e_3" in arm["sentence"]


def test_the_best_local_arm_may_be_one_that_was_stopped_early(
    operator: Caller, federation: dict[str, Any], session: Session
) -> None:
    early = {"strategy": {"name": "local_only", "guard": "validation"}, "label": "stopped_early"}
    comparison = make_comparison(operator, federation, arms=[early, *ARMS], seeds=[0, 1, 2])
    better = {("local_only_stopped_early", seed): (0.55, 0.65 + 0.01 * seed) for seed in (0, 1, 2)}
    play(session, federation, comparison, DELIVERED | better)
    results = results_of(operator, comparison)
    assert results["best_local"] == "local_only_stopped_early"
    arm = arm_of(results, "h2tune")
    # means over clients .60 .605 .61; h2tune .60 .63 .63: differences .0 .025 .02
    assert arm["gain"]["mean"] == pytest.approx(0.015)
    assert arm["over_local_only"]["mean"] == pytest.approx(0.10), "the one after its last round"
    assert arm["verdict"] == "no gain shown"
    assert "over local_only_stopped_early" in arm["sentence"]
    local = arm_of(results, "local_only_stopped_early")
    assert (local["is_control"], local["verdict"], local["gain"]) == (False, None, None)


@pytest.mark.parametrize(
    ("strategy", "label", "title"),
    [
        ({"name": "local_only"}, "v2", "local_only_v2"),
        (GUARDED | {"name": "local_only"}, None, "local_only (stopped early)"),
        (GUARDED | {"name": "local_only"}, "v2", "local_only_v2 (stopped early)"),
        (GUARDED | {"name": "local_only"}, "stopped_early", "local_only_stopped_early"),
        (GUARDED | {"name": "h2tune", "control": "alone"}, None, "h2tune (stopped early)"),
        (GUARDED | {"name": "h2tune"}, None, "h2tune"),  # what others gave competes too
    ],
)
def test_a_title_says_that_an_arm_was_stopped_early(
    operator: Caller,
    federation: dict[str, Any],
    strategy: dict[str, Any],
    label: str | None,
    title: str,
) -> None:
    arms = [{"strategy": strategy, "label": label}]
    comparison = make_comparison(operator, federation, arms=arms, seeds=[0])
    assert results_of(operator, comparison)["arms"][0]["title"] == title


def test_the_same_shape_alone_may_be_the_best_local_arm(
    operator: Caller, federation: dict[str, Any], session: Session
) -> None:
    alone = {"strategy": {"name": "h2tune", "control": "alone"}, "label": "alone"}
    arms = [*ARMS, alone]
    comparison = make_comparison(operator, federation, arms=arms, seeds=[0, 1, 2])
    shape = {
        ("h2tune_alone", seed): (first + 0.05, second + 0.05)
        for (arm, seed), (first, second) in DELIVERED.items()
        if arm == "local_only"
    }
    play(session, federation, comparison, {**DELIVERED, **shape})
    results = results_of(operator, comparison)
    assert results["best_local"] == "h2tune_alone"
    arm = arm_of(results, "h2tune_alone")
    assert (arm["is_control"], arm["verdict"], arm["gain"]) == (True, None, None)
    assert arm["over_local_only"]["mean"] == pytest.approx(0.05)
    assert arm_of(results, "h2tune")["gain"]["mean"] == pytest.approx(0.05)  # .10 without it


def test_fronts_leave_out_controls(operator: Caller, finished: dict[str, Any]) -> None:
    results = results_of(operator, finished)
    on = {
        arm["name"]: (arm["is_on_bytes_front"], arm["is_on_seconds_front"])
        for arm in results["arms"]
    }
    # The permuted control is the quickest of all, and yet no candidate.
    assert on == {
        "local_only": (True, True),
        "h2tune": (True, True),
        "h2tune_permuted": (False, False),
    }


def test_a_gain_that_survives_the_control_is_shrinkage(
    operator: Caller, federation: dict[str, Any], session: Session
) -> None:
    comparison = make_comparison(operator, federation, seeds=[0, 1, 2])
    alike = {("h2tune_permuted", seed): DELIVERED["h2tune", seed] for seed in range(3)}
    play(session, federation, comparison, DELIVERED | alike)
    arm = arm_of(results_of(operator, comparison), "h2tune")
    assert arm["verdict"] == "shrinkage"
    assert arm["over_control"] == {"mean": 0.0, "half_width": 0.0, "n": 3}


def test_one_seed_settles_nothing(
    operator: Caller, federation: dict[str, Any], session: Session
) -> None:
    comparison = make_comparison(operator, federation, seeds=[1])
    play(session, federation, comparison, {k: v for k, v in DELIVERED.items() if k[1] == 1})
    arm = arm_of(results_of(operator, comparison), "h2tune")
    assert arm["verdict"] == "too few seeds"
    assert arm["gain"]["half_width"] is None
    assert arm["overall"]["delivered"]["sd"] is None


def test_untrained_models_that_beat_local_training_are_the_best_local_arm(
    operator: Caller, federation: dict[str, Any], session: Session
) -> None:
    comparison = make_comparison(operator, federation, seeds=[0, 1], arms=ARMS[:2])
    worse = {("local_only", 0): (0.1, 0.1), ("local_only", 1): (0.1, 0.1)}
    together = {place: DELIVERED[place] for place in (("h2tune", 0), ("h2tune", 1))}
    play(session, federation, comparison, worse | together)
    results = results_of(operator, comparison)
    assert results["best_local"] == "untrained"
    arm = arm_of(results, "h2tune")
    # .60 - .30 and .63 - .30: mean .315, sd .02121, half width 12.706 * .02121 / sqrt(2) = .19059
    assert arm["gain"] == pytest.approx({"mean": 0.315, "half_width": 0.19059, "n": 2}, abs=1e-5)
    assert arm["over_local_only"]["mean"] == pytest.approx(0.515)
    assert arm["verdict"] == "uncontrolled gain"


def test_what_has_completed_shows_while_the_rest_goes_on(
    operator: Caller, federation: dict[str, Any], session: Session
) -> None:
    comparison = make_comparison(operator, federation, seeds=[0, 1, 2])
    empty = results_of(operator, comparison)
    assert empty["best_local"] is None
    assert all(arm["overall"]["delivered"] is None for arm in empty["arms"])
    some = {place: v for place, v in DELIVERED.items() if place[0] != "h2tune_permuted"}
    del some["h2tune", 2]
    play(session, federation, comparison, some)
    results = results_of(operator, comparison)
    arm = arm_of(results, "h2tune")
    assert arm["overall"]["delivered"]["n"] == 2
    assert arm["gain"]["n"] == 2
    assert arm["verdict"] is None, "its control has no result yet"
    assert results["comparison"]["num_runs"] == {"completed": 5, "created": 4}


def test_failed_runs_are_named_and_do_not_count(
    operator: Caller, federation: dict[str, Any], session: Session
) -> None:
    comparison = make_comparison(operator, federation, seeds=[0, 1, 2])
    some = {place: v for place, v in DELIVERED.items() if place != ("h2tune", 1)}
    play(session, federation, comparison, some)
    fail(session, runs_of(session, comparison)["h2tune", 1], "a-clinic failed: out | of memory")
    results = results_of(operator, comparison)
    arm = arm_of(results, "h2tune")
    # Over local_only .10 .09: .095 ± .0635. Over its control .09 .11: .10 ± .127.
    assert (arm["seeds"], arm["gain"]["n"], arm["verdict"]) == ([0, 2], 2, "shrinkage")
    failed = [run for run in results["runs"] if run["status"] == "failed"]
    assert [(run["arm"], run["seed"], run["error"]) for run in failed] == [
        ("h2tune", 1, "a-clinic failed: out | of memory")
    ]
    report = operator.get(f"/comparisons/{comparison['id']}/results.md").text
    assert "- h2tune, seed 1: failed. a-clinic failed: out \\| of memory" in report


def test_csv_has_every_figure(operator: Caller, finished: dict[str, Any]) -> None:
    response = operator.get(f"/comparisons/{finished['id']}/results.csv")
    assert response.headers["content-type"].startswith("text/csv")
    assert finished["id"] in response.headers["content-disposition"]
    rows = list(csv.DictReader(io.StringIO(response.text)))
    assert len(rows) == 3 * 3 * 2
    found = {
        (row["arm"], int(row["seed"]), row["client_name"]): float(row["accuracy_delivered"])
        for row in rows
    }
    for (arm, seed), (first, second) in DELIVERED.items():
        assert found[arm, seed, "a-clinic"] == first
        assert found[arm, seed, "B-clinic"] == second
    assert {row["bytes_up"] for row in rows if row["arm"] == "h2tune"} == {"200.0"}
    assert {row["status"] for row in rows} == {"completed"}


def test_csv_names_runs_without_a_result_and_runs_no_formula(
    operator: Caller, session: Session
) -> None:
    client, _ = make_client(operator, name="=HYPERLINK(1)")
    comparison = make_comparison(
        operator, make_federation(operator, client), seeds=[0], arms=ARMS[:1]
    )
    fail(session, runs_of(session, comparison)["local_only", 0], "+1 reasons")
    text = operator.get(f"/comparisons/{comparison['id']}/results.csv").text
    [row] = csv.DictReader(io.StringIO(text))
    assert row["client_name"] == "'=HYPERLINK(1)"
    assert (row["status"], row["error"]) == ("failed", "'+1 reasons")
    assert row["accuracy_delivered"] == ""


def test_markdown_is_a_report(operator: Caller, finished: dict[str, Any]) -> None:
    response = operator.get(f"/comparisons/{finished['id']}/results.md")
    assert response.headers["content-type"].startswith("text/markdown")
    report = response.text
    assert report.startswith("# Does it pay?\n")
    assert "- Transfer: h2tune gains +10.0 ± 2.5 points over local\\_only" in report
    accuracy = next(line for line in report.splitlines() if line.startswith("| local\\_only | 3 |"))
    assert accuracy == (
        "| local\\_only | 3 | 0.300 ± 0.000 | 0.420 ± 0.020 | 0.520 ± 0.020 "
        "| 0.420 ± 0.020 | 0.620 ± 0.020 |"
    )
    assert "| h2tune | 400 ± 0 | 200 ± 0 | 12.0 ± 0.0 | bytes, seconds |" in report
    assert "Runs without a result" not in report


def test_arms_in_groups_say_so_in_every_table(
    operator: Caller, federation: dict[str, Any], finished: dict[str, Any]
) -> None:
    grouping = {"name": "fedit", "group_by": "architecture"}
    comparison = make_comparison(operator, federation, arms=[{"strategy": grouping}], seeds=[0])
    title = "fedit (in groups)"
    assert results_of(operator, comparison)["arms"][0]["title"] == title
    report = operator.get(f"/comparisons/{comparison['id']}/results.md").text
    escaped = title.replace("_", "\\_")
    assert sum(line.startswith(f"| {escaped} |") for line in report.splitlines()) == 3
    rows = csv.DictReader(
        io.StringIO(operator.get(f"/comparisons/{comparison['id']}/results.csv").text)
    )
    assert {row["title"] for row in rows} == {title}


def test_looking_changes_nothing(viewer: Caller, finished: dict[str, Any], engine: Any) -> None:
    with unchanged(engine):
        for path in ("results", "results.csv", "results.md"):
            assert viewer.get(f"/comparisons/{finished['id']}/{path}").status_code == 200
