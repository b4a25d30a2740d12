"""A whole experiment on the built-in models, from its file to its results."""

import csv
import sys
from pathlib import Path

import pytest

from worker.federated.errors import InvalidConfigError
from worker.federated.experiments.__main__ import main
from worker.federated.experiments.config import load_experiment

EXAMPLES = sorted((Path(__file__).parents[4] / "examples" / "sharing").glob("*.toml"))

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

[[arms]]
kind = "untrained"

[[arms]]
kind = "local"
name = "local_lora"
learning_rates = [1e-3]

[[arms]]
kind = "federated"
name = "h2tune"
gauge = "exchange"
strategy = { name = "h2tune", gauge = "probe", joint_rounds = 0, mask_warmup_rounds = 0 }
"""


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_the_examples_are_valid(path: Path) -> None:
    assert load_experiment(path).arms


def test_an_experiment_writes_its_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "small.toml").write_text(SMALL)
    out = tmp_path / "out"
    monkeypatch.setattr(
        sys, "argv", ["experiments", "--config", str(tmp_path / "small.toml"), "--out", str(out)]
    )
    main()
    rows = list(csv.DictReader((out / "results.csv").read_text().splitlines()))
    assert [row["arm"] for row in rows] == ["untrained"] * 2 + ["local_lora"] * 2 + ["h2tune"] * 2
    assert {row["layers"] for row in rows} == {"4", "6"}
    assert {(row["client"], row["accuracy_initial"]) for row in rows} == {
        (row["client"], row["accuracy_initial"]) for row in rows[:2]
    }  # all arms start from the same accuracy
    assert "Against the best local arm" in (out / "results.md").read_text()
    assert (out / "small.html").stat().st_size > 0


def test_an_unusable_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidConfigError, match=r"'absent.toml' is unusable"):
        load_experiment(tmp_path / "absent.toml")
    (tmp_path / "empty.toml").write_text("seeds = 1")
    with pytest.raises(InvalidConfigError, match=r"num_rounds\n  Field required|training"):
        load_experiment(tmp_path / "empty.toml")
