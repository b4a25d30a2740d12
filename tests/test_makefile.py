"""The Makefile and the script of continuous integration: what can be checked without an install."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from backend.cli import app as fedbraid

ROOT = Path(__file__).parents[1]
MAKEFILE = (ROOT / "Makefile").read_text()
TARGETS = re.findall(r"(?m)^([a-z-]+):(?!=)", MAKEFILE)


def make(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["make", "--no-print-directory", *arguments],
        cwd=ROOT,
        env={**os.environ, "MAKEFLAGS": "", **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_make_alone_lists_every_target() -> None:
    listed = re.findall(r"(?m)^  make ([a-z-]+) +\S", make().stdout)
    assert listed == TARGETS
    (phony,) = re.findall(r"(?m)^\.PHONY: (.+)$", MAKEFILE)
    assert phony.split() == TARGETS


def test_the_programs_that_targets_start_exist() -> None:
    commands = {command.callback.__name__ for command in fedbraid.registered_commands}
    assert set(re.findall(r"\$\(BIN\)/fedbraid (\w+)", MAKEFILE)) <= commands
    for program in re.findall(r"\$\(BIN\)/([\w-]+)", MAKEFILE):
        assert shutil.which(program, path=str(ROOT / ".venv/bin")) or shutil.which(program), program


@pytest.mark.parametrize("target", ["demo", "up", "test"])
def test_arguments_are_passed_on(target: str) -> None:
    assert "--seed 3" in make("--dry-run", target, "ARGS=--seed 3").stdout


def test_an_installed_environment_is_left_alone(tmp_path: Path) -> None:
    stamp = tmp_path / "venv" / ".installed"
    stamp.parent.mkdir()
    stamp.touch()
    ran = make("install", f"VENV={stamp.parent}")
    assert (ran.returncode, ran.stderr) == (0, "")
    assert list(stamp.parent.iterdir()) == [stamp]


def test_a_missing_python_is_one_line_with_the_remedy(tmp_path: Path) -> None:
    """Only tools, and a python that is too old, are to be found."""
    for tool in ("bash", "make"):
        found = shutil.which(tool)
        assert found is not None
        (tmp_path / tool).symlink_to(found)
    old = tmp_path / "python3"
    old.write_text("#!/bin/bash\nexit 1\n")
    old.chmod(0o755)
    ran = make("install", f"VENV={tmp_path / 'venv'}", PATH=str(tmp_path))
    assert ran.returncode != 0
    said = [line for line in ran.stderr.splitlines() if not line.startswith("make")]
    assert len(said) == 1
    assert re.search(r"needs Python 3\.11 or newer.*python3-venv.*PYTHON=", said[0])
    assert not (tmp_path / "venv").exists()


def test_torch_has_one_version_everywhere() -> None:
    (pinned,) = re.findall(r"(?m)^TORCH := (torch==\S+)$", MAKEFILE)
    assert pinned in (ROOT / "docker/worker.Dockerfile").read_text()
    assert not re.search(r"(?m)^torch==", (ROOT / "requirements.lock").read_text())


def test_continuous_integration_runs_the_targets_that_exist() -> None:
    script = ROOT / ".ci/run"
    assert os.access(script, os.X_OK)
    used = re.findall(r"(?m)^make ([a-z]+)", script.read_text())
    assert used == ["install", "check", "test"]
    assert set(used) <= set(TARGETS)
    subprocess.run(["bash", "-n", str(script)], check=True)
