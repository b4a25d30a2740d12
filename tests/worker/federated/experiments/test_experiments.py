"""A whole experiment on the built-in models, from its file to its results."""

import csv
import dataclasses
import sys
from pathlib import Path

import pytest

from tests.worker.federated.tiny import make_client
from worker.federated.errors import InvalidConfigError
from worker.federated.experiments.__main__ import main
from worker.federated.experiments.arm_kinds import Federations
from worker.federated.experiments.arms import grouped
from worker.federated.experiments.config import load_experiment
from worker.federated.experiments.members import make_clients, pooled

EXAMPLES = sorted((Path(__file__).parents[4] / "examples").glob("*/*.toml"))

SMALL = """
seeds = 1
num_rounds = 2

[training]
local_steps = 2
batch_size = 2
learning_rate = 1e-3

[[settings]]
name = "small"
global_rank = 4
num_train = 4
num_validation = 2
num_test = 6
probes = { unit = "text", num_texts = 24 }
members = [
    { kind = "builtin", model = "tiny_llama", task = "story_classification", rank = 4 },
    { kind = "builtin", model = "tiny_gemma", task = "story_classification", rank = 2 },
]

[standard]
names = ["untrained", "local_only", "local_lora", "h2tune"]
h2tune = { name = "h2tune", gauge = "probe", joint_rounds = 0, mask_warmup_rounds = 0 }
gauge = "exchange"
lora_learning_rates = [1e-3]

[[arms]]
kind = "federated"
name = "plain"
strategy = { name = "h2tune", gauge = "none" }
"""


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_the_examples_are_valid(path: Path) -> None:
    assert load_experiment(path).all_arms


def run(folder: Path, monkeypatch: pytest.MonkeyPatch, *options: str) -> list[dict[str, str]]:
    (folder / "small.toml").write_text(SMALL)
    given = ["--config", str(folder / "small.toml"), "--out", str(folder / "out"), *options]
    monkeypatch.setattr(sys, "argv", ["experiments", *given])
    main()
    return list(csv.DictReader((folder / "out" / "results.csv").read_text().splitlines()))


def test_an_experiment_is_done_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = run(tmp_path, monkeypatch, "--arms", "untrained,h2tune")
    assert [row["arm"] for row in first] == ["untrained"] * 2 + ["h2tune"] * 2
    rows = run(tmp_path, monkeypatch)
    assert rows[:4] == first  # known, and left alone
    arms = ["untrained", "h2tune", "local_only", "local_lora", "plain"]
    assert [row["arm"] for row in rows] == [arm for arm in arms for _ in range(2)]
    assert list(rows[0])[:12] == [
        *("setting", "arm", "seed", "client", "model", "layers", "hidden", "rank", "task"),
        *("accuracy_initial", "accuracy_after_local", "accuracy_after_aggregation"),
    ]
    assert {row["layers"] for row in rows} == {"4", "6"}
    assert {(row["client"], row["accuracy_initial"]) for row in rows} == {
        (row["client"], row["accuracy_initial"]) for row in rows[:2]
    }  # all arms start from the same accuracy
    assert {row["round"] for row in rows if row["arm"] == "local_only"} == {"2"}
    assert "Against the best local arm" in (tmp_path / "out" / "results.md").read_text()
    assert (tmp_path / "out" / "small.svg").stat().st_size > 0


def test_the_last_round_is_measured_however_rarely_others_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rarely = SMALL.replace("learning_rate = 1e-3\n", "learning_rate = 1e-3\nevaluate_every = 7\n")
    monkeypatch.setattr(sys.modules[__name__], "SMALL", rarely)
    rows = run(tmp_path, monkeypatch, "--arms", "local_only")
    assert {row["round"] for row in rows} == {"2"}


def test_seeds_are_chosen_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = run(tmp_path, monkeypatch, "--arms", "untrained", "--seeds", "3,1")
    assert [row["seed"] for row in rows] == ["3", "3", "1", "1"]


def test_results_of_another_configuration_are_not_mixed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tmp_path, monkeypatch, "--arms", "untrained")
    monkeypatch.setattr(
        sys.modules[__name__], "SMALL", SMALL.replace("num_test = 6", "num_test = 5")
    )
    with pytest.raises(InvalidConfigError, match="another configuration"):
        run(tmp_path, monkeypatch, "--arms", "untrained")


def test_clients_share_within_or_across_models() -> None:
    one, two = make_client("a"), make_client("c", "gemma")
    twin = dataclasses.replace(one, client_id="b")
    other_depth = make_client("d", num_layers=1)
    clients = [one, twin, two, other_depth]

    def names(federations: Federations) -> list[list[str]]:
        return [[c.client_id for c in group] for group in grouped(clients, federations)]

    assert names("one") == [["a", "b", "c", "d"]]
    assert names("same_model") == [["a", "b"], ["c"], ["d"]]
    assert names("same_family") == [["a", "b", "d"], ["c"]]
    assert names("different_models") == [["a", "c", "d"], ["b"]]


def test_rows_are_pooled_within_a_task_and_only_in_the_arm_that_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = '    { kind = "builtin", model = "tiny_llama", task = "%s", rank = 4 },\n'
    text = SMALL.replace("members = [\n", "members = [\n" + more % "story_classification")
    text = text.replace("members = [\n", "members = [\n" + more % "arithmetic_choice")
    text = text.replace('"local_lora", ', '"local_lora", "pooled_lora", ')
    monkeypatch.setattr(sys.modules[__name__], "SMALL", text)
    rows = run(tmp_path, monkeypatch, "--arms", "local_only,pooled_lora")
    [setting] = load_experiment(tmp_path / "small.toml").settings
    pairs = make_clients(setting, 0, None)
    sums, *stories = [client.data for client in pooled(pairs)]
    assert sums == pairs[0][1].data
    assert stories[0].train == stories[1].train == stories[2].train
    assert len(stories[0].train) == 12
    assert set(stories[0].train) == {row for _, c in pairs[1:] for row in c.data.train}
    assert len(stories[0].validation) == 6
    rounds = [int(row["round"]) for row in rows if row["arm"] == "pooled_lora"]
    assert rounds[0] <= 2  # one client has the other task, three have this one
    assert all(0 <= number <= 6 for number in rounds)
    # Two clients of one model, rank and task are the same client once their rows are pooled.
    reached = [row["accuracy_after_local"] for row in rows if row["arm"] == "pooled_lora"]
    models = [row["model"] for row in rows if row["arm"] == "pooled_lora"]
    assert models[1] == models[2]
    assert reached[1] == reached[2]
    assert "pooled_lora (best local)" not in (tmp_path / "out" / "results.md").read_text()


def test_an_unusable_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidConfigError, match=r"'absent.toml' is unusable"):
        load_experiment(tmp_path / "absent.toml")
    (tmp_path / "empty.toml").write_text("seeds = 1")
    with pytest.raises(InvalidConfigError, match=r"num_rounds\n  Field required|training"):
        load_experiment(tmp_path / "empty.toml")


def test_an_experiment_has_arms_with_different_names(tmp_path: Path) -> None:
    path = tmp_path / "arms.toml"
    path.write_text(SMALL.replace('name = "plain"', 'name = "h2tune"'))
    with pytest.raises(InvalidConfigError, match="two arms are named 'h2tune'"):
        load_experiment(path)
    path.write_text(SMALL[: SMALL.index("[standard]")])
    with pytest.raises(InvalidConfigError, match="there is no arm"):
        load_experiment(path)
