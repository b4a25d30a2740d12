"""The digits script, run as a user runs it, but shorter."""

import runpy
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "examples" / "digits.py"


def test_table_has_every_arm(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    short = {"rounds": 1, "steps": 2, "examples": 5, "seeds": 1, "public-steps": 3}
    options = [f"--{name}={value}" for name, value in short.items()]
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *options])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    head, *rows, note = capsys.readouterr().out.splitlines()
    assert head.split() == ["narrow-1", "wide-1", "narrow-2", "wide-2", "mean", "bytes", "up"]
    assert [row[:28].strip() for row in rows] == [
        "Local only",
        "H2Tune",
        "HeteroTune (reconstructed)",
    ]
    cells = [row[28:].split() for row in rows]
    assert all(0 <= float(cell.rstrip("%")) <= 100 for row in cells for cell in row[:5])
    sent = [int(row[5].replace(",", "")) for row in cells]
    assert sent[0] == 0
    assert min(sent[1:]) > 0
    assert "1 seeds" in note


def test_more_pictures_than_there_are_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), "--examples=200"])
    with pytest.raises(SystemExit):
        runpy.run_path(str(SCRIPT), run_name="__main__")
