"""Child processes: started with a log file, stopped for certain, gone when this process is gone."""

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Command:
    """How to start and stop one program.

    Args:
        name: for messages and for the name of the log file.
        argv: program and arguments; never passed through a shell.
        log_path: stdout and stderr are appended here.
        environment: the whole environment of the program.
        stop_signal: asks the program to end in good order.
        death_signal: what the kernel sends when this process ends without stopping it (Linux).
        patience_seconds: how long a stop may take before the program is killed.
    """

    name: str
    argv: Sequence[str]
    log_path: Path
    environment: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))
    stop_signal: signal.Signals = signal.SIGTERM
    death_signal: signal.Signals = signal.SIGKILL
    patience_seconds: float = 10.0


class ChildProcess:
    """A running program.

    Start it from a thread that lives as long as the program should: the kernel ties a child to the
    thread that made it.
    """

    def __init__(self, command: Command):
        self.command = command
        self.start()

    def start(self) -> None:
        """Starts the program, for the first time or again after its end."""
        self._was_asked = False
        self.command.log_path.parent.mkdir(parents=True, exist_ok=True)
        # -P: a folder named `backend` where the user stands is not ours.
        launcher = [sys.executable, "-P", "-m", "backend.local.launcher"]
        bond = [str(os.getpid()), str(int(self.command.death_signal))]
        with self.command.log_path.open("ab") as log:
            self._process = subprocess.Popen(  # noqa: S603 (argv is ours, no shell)
                [*launcher, *bond, *self.command.argv],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=dict(self.command.environment),
                # Ctrl-C in the terminal reaches the parent only, which stops children in order.
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """The process id; also of the program, since the launcher becomes it."""
        return self._process.pid

    def returncode(self) -> int | None:
        """How the program ended, or None while it runs; negative: the signal that ended it."""
        return self._process.poll()

    def ask_to_stop(self) -> None:
        """Asks the program to end, once; `stop` waits for it."""
        if not self._was_asked:
            self._was_asked = True
            self._process.send_signal(self.command.stop_signal)

    def stop(self) -> None:
        """Ends the program and returns when it is gone."""
        self.ask_to_stop()
        try:
            self._process.wait(self.command.patience_seconds)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def last_log_line(self) -> str:
        """The last line the program wrote, for a message about its end."""
        lines = self.command.log_path.read_text(errors="replace").strip().splitlines()
        return lines[-1].strip() if lines else "it wrote nothing"
