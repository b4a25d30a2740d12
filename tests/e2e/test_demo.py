"""`fedbraid demo` as a user runs it, to the end."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from statistics import fmean

import psutil


def command(report: Path) -> list[str]:
    options = ["--exit", "--rounds", "1", "--report", str(report), "--train-workers", "2"]
    return [sys.executable, "-m", "backend.cli", "demo", *options]


def environment(home: Path) -> dict[str, str]:
    outside = {"DATABASE_URL", "REDIS_URL", "BLOB_URL", "FEDBRAID_ADMIN_PASSWORD"}
    kept = {name: value for name, value in os.environ.items() if name not in outside}
    return kept | {
        "FEDBRAID_HOME": str(home),
        "FEDBRAID_API_PORT": "0",
        "FEDBRAID_DASHBOARD_PORT": "0",
        "COLUMNS": "200",
    }


def processes_of(home: Path) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if str(home) in process.environ().get("FEDBRAID_HOME", ""):
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            continue
    return found


def test_the_demo_ends_by_itself_with_a_report(tmp_path: Path) -> None:
    home, path = tmp_path / "home", tmp_path / "report.json"
    ran = subprocess.run(
        command(path), env=environment(home), capture_output=True, text=True, timeout=280
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    report = json.loads(path.read_text())
    assert report["rounds"] == 1
    assert 0 < report["seconds_training"] < report["seconds_total"]
    seen = [(c["name"], c["family"], c["rank"], c["task"]) for c in report["clients"]]
    assert sorted(seen) == [
        ("city-institute", "llama", 16, "classification"),
        ("east-hospital", "gemma", 16, "classification"),
        ("north-clinic", "llama", 16, "classification"),
        ("south-lab", "llama", 8, "classification"),
        ("west-practice", "gemma", 16, "classification"),
    ]
    for client in report["clients"]:
        assert set(client["accuracy"]) == {"initial", "local_only", "h2tune"}
        assert all(0 <= share <= 1 for share in client["accuracy"].values())
        assert abs(client["sparsity"] - (1 - (client["rank"] / 16) ** 2)) < 1e-9
        assert client["bytes_up_per_round"] > 0
        assert 0 <= client["accuracy_same_shape_alone"] <= 1
        assert client["name"] in ran.stdout
    assert "Mean accuracy here: h2tune" in ran.stdout
    assert "The same shape trained alone: " in ran.stdout
    assert [gain["over"] for gain in report["gains"]] == ["local_only", "same_shape_alone"]
    clients = report["clients"]
    together = fmean(c["accuracy"]["h2tune"] for c in clients)
    local_only = fmean(c["accuracy"]["local_only"] for c in clients)
    same_shape = fmean(c["accuracy_same_shape_alone"] for c in clients)
    for gain, alone in zip(report["gains"], (local_only, same_shape), strict=True):
        assert abs(gain["difference"] - (together - alone)) < 1e-9
        assert gain["standard_error"] > 0
    assert processes_of(home) == []


def test_ctrl_c_in_the_middle_leaves_no_process_and_no_report(tmp_path: Path) -> None:
    home, path = tmp_path / "home", tmp_path / "report.json"
    output = tmp_path / "output.txt"
    with output.open("wb") as file:
        demo = subprocess.Popen(
            command(path), env=environment(home), stdout=file, stderr=subprocess.STDOUT
        )
    deadline = time.monotonic() + 200
    while "local_only: http" not in output.read_text():
        assert demo.poll() is None, output.read_text()
        assert time.monotonic() < deadline, output.read_text()
        time.sleep(0.2)
    demo.send_signal(signal.SIGINT)
    assert demo.wait(60) == 0
    assert "Traceback" not in output.read_text()
    assert processes_of(home) == []
    assert not path.exists()
