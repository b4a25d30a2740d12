import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from backend.local.errors import ProgramFailedError
from backend.local.processes import ChildProcess, Command
from backend.local.supervisor import Supervisor

SLEEP = "import time; time.sleep(600)"
DEAF = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); " + (
    "print('deaf', flush=True); time.sleep(600)"
)


def command(folder: Path, code: str, name: str = "program", patience: float = 10.0) -> Command:
    argv = [sys.executable, "-c", code]
    return Command(name, argv, folder / f"{name}.log", patience_seconds=patience)


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def started(folder: Path) -> Callable[[], bool]:
    return lambda: (folder / "started").exists()


def test_a_child_writes_its_log_and_tells_how_it_ended(tmp_path: Path) -> None:
    child = ChildProcess(command(tmp_path, "print('first'); print('last'); raise SystemExit(3)"))
    wait_for(lambda: child.returncode() is not None)
    assert child.returncode() == 3
    assert child.last_log_line() == "last"


def test_the_launcher_becomes_the_program(tmp_path: Path) -> None:
    child = ChildProcess(command(tmp_path, SLEEP))
    wait_for(lambda: psutil.Process(child.pid).cmdline() == [sys.executable, "-c", SLEEP])
    child.stop()
    assert not psutil.pid_exists(child.pid)


def test_a_deaf_child_is_killed_when_patience_ends(tmp_path: Path) -> None:
    child = ChildProcess(command(tmp_path, DEAF, patience=0.2))
    wait_for(lambda: child.last_log_line() == "deaf")
    child.stop()
    assert child.returncode() == -signal.SIGKILL


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the kernel's bond is Linux only")
def test_a_child_ends_with_a_killed_parent(tmp_path: Path) -> None:
    code = f"""
import time
from pathlib import Path
from backend.local.processes import ChildProcess, Command
child = ChildProcess(Command("deaf", [{sys.executable!r}, "-c", {DEAF!r}], Path({str(tmp_path)!r}) / "log"))
while child.last_log_line() != "deaf":
    time.sleep(0.02)
print(child.pid, flush=True)
time.sleep(600)
"""  # noqa: E501
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        parent.kill()
    wait_for(lambda: not psutil.pid_exists(pid))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the kernel's bond is Linux only")
def test_the_launcher_starts_nothing_for_a_parent_that_is_gone() -> None:
    argv = ["-m", "backend.local.launcher", "1", str(int(signal.SIGKILL)), "echo", "started"]
    ended = subprocess.run([sys.executable, *argv], capture_output=True, text=True, check=False)
    assert os.getpid() != 1
    assert (ended.returncode, ended.stdout) == (1, "")
    assert "process 1, which started this one, has ended" in ended.stderr


def children() -> set[psutil.Process]:
    """Programs that this process started; other tests' services may be among them."""
    return set(psutil.Process().children())


def test_a_program_that_dies_is_said_and_started_again(tmp_path: Path) -> None:
    others = children()
    said: list[str] = []
    code = "from pathlib import Path; import sys, time\n" + (
        f"Path({str(tmp_path / 'started')!r}).touch(); print('up', flush=True); time.sleep(600)"
    )
    supervisor = Supervisor(said.append, lambda: False)
    supervisor.start(command(tmp_path, code, "api"), started(tmp_path))
    try:
        supervisor.wait_until_ready()
        (first,) = children() - others
        (tmp_path / "started").unlink()
        first.kill()
        wait_for(lambda: (supervisor.check(), started(tmp_path)())[1])
        (second,) = children() - others
        assert second.pid != first.pid
        assert said == [
            f"api ended (signal 9), starting it again in 0 s; its log: {tmp_path / 'api.log'}"
        ]
    finally:
        supervisor.stop()
    assert children() <= others


def test_a_program_that_dies_again_and_again_waits_longer(tmp_path: Path) -> None:
    said: list[str] = []
    supervisor = Supervisor(said.append, lambda: False)
    supervisor.start(command(tmp_path, "raise SystemExit(1)"), lambda: True)
    try:
        wait_for(lambda: (supervisor.check(), len(said) == 3)[1])
    finally:
        supervisor.stop()
    assert [line.split(" in ")[1].split(";")[0] for line in said] == ["0 s", "1 s", "3 s"]


def test_a_program_that_ends_before_it_is_ready_fails_the_start(tmp_path: Path) -> None:
    supervisor = Supervisor(pytest.fail, lambda: False)
    supervisor.start(command(tmp_path, "raise SystemExit('no database')", "api"), lambda: False)
    with pytest.raises(ProgramFailedError, match=r"api ended at once: no database \(log: .*api"):
        supervisor.wait_until_ready()
    supervisor.stop()


def test_a_stop_ends_the_wait_for_readiness(tmp_path: Path) -> None:
    others = children()
    supervisor = Supervisor(pytest.fail, lambda: True)
    supervisor.start(command(tmp_path, SLEEP), lambda: False)
    supervisor.wait_until_ready()
    supervisor.stop()
    assert children() <= others


def test_an_adopted_program_is_watched_but_left_to_its_owner(tmp_path: Path) -> None:
    said: list[str] = []
    child = ChildProcess(command(tmp_path, SLEEP, "postgres"))
    supervisor = Supervisor(said.append, lambda: False)
    supervisor.adopt(child)
    first = child.pid
    os.kill(first, signal.SIGKILL)
    wait_for(lambda: (supervisor.check(), child.pid != first)[1])
    supervisor.stop()
    assert child.returncode() is None
    child.stop()
