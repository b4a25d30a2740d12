"""The script of the tutorial, run as a user runs it."""

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from peft import LoraConfig

from tests.worker.federated.tiny import make_model, make_tokenizer

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "examples" / "two_models.py"
SHORT = ["--rounds", "2", "--steps", "3", "--examples", "8"]


def check(text: str, output: Path, clients: dict[str, int]) -> None:
    """One row and one adapter for each client, of its own rank."""
    lines = text.splitlines()
    assert lines[0].split()[:4] == ["client", "rank", "start", "end"]
    for line, (client, rank) in zip(lines[1:], clients.items(), strict=False):
        cells = line.split()
        assert cells[:2] == [client, str(rank)]
        assert 0 < int(cells[4].replace(",", "")) < int(cells[5].replace(",", ""))
        assert LoraConfig.from_pretrained(str(output / client)).r == rank
    loaded = [line for line in lines if "loaded with stock PEFT" in line]
    assert len(loaded) == len(clients)
    assert all(float(line.split()[-1]) > 0 for line in loaded)


def test_built_in_models(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *SHORT, "--output", str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    check(done.stdout, tmp_path, {"a-tiny_llama": 4, "b-tiny_gemma": 16})


def test_two_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = [tmp_path / "wide", tmp_path / "deep"]
    models = [make_model("gpt2", width=96), make_model("llama", num_layers=3, width=64)]
    for folder, model in zip(folders, models, strict=True):
        model.save_pretrained(folder)
        make_tokenizer().save_pretrained(folder)
    capsys.readouterr()
    monkeypatch.setattr(
        sys, "argv", ["two_models.py", *map(str, folders), *SHORT, "--output", str(tmp_path)]
    )
    runpy.run_path(str(SCRIPT), run_name="__main__")
    check(capsys.readouterr().out, tmp_path, {"a-wide": 4, "b-deep": 16})


def test_one_folder_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["two_models.py", "only-one"])
    with pytest.raises(SystemExit):
        runpy.run_path(str(SCRIPT), run_name="__main__")
