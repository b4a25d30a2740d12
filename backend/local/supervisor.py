"""Several programs at once: started together, waited for, restarted when they die, stopped."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from backend.local.errors import ProgramFailedError
from backend.local.processes import ChildProcess, Command

START_SECONDS = 180.0  # the first import of torch on a slow disk takes a minute
STEADY_SECONDS = 60.0  # a program that lived this long is restarted without a wait
MAX_BACKOFF_SECONDS = 30.0

IsReady = Callable[[], bool]


@dataclass
class _Watched:
    process: ChildProcess
    is_ready: IsReady
    started_at: float
    num_deaths: int = 0
    restart_at: float | None = None  # set while it is dead


class Supervisor:
    """Keeps programs alive until it is left.

    Args:
        say: gets one sentence about each program that died.
        stop_requested: asked often; when it answers True the waiting here ends.
    """

    def __init__(self, say: Callable[[str], None], stop_requested: Callable[[], bool]):
        self._say = say
        self._stop_requested = stop_requested
        self._own: list[_Watched] = []
        self._adopted: list[_Watched] = []

    def start(self, command: Command, is_ready: IsReady) -> None:
        """Starts a program; `wait_until_ready` waits for it."""
        self._own.append(_Watched(ChildProcess(command), is_ready, time.monotonic()))

    def adopt(self, process: ChildProcess) -> None:
        """Restarts this program too when it dies, but leaves its end to whoever started it."""
        self._adopted.append(_Watched(process, lambda: True, time.monotonic()))

    def wait_until_ready(self) -> None:
        """Returns when every program is ready, or when a stop is requested.

        Raises:
            ProgramFailedError: one ended instead, or did not get ready in time.
        """
        deadline = time.monotonic() + START_SECONDS
        for watched in self._own:
            command = watched.process.command
            while not self._stop_requested() and not watched.is_ready():
                if watched.process.returncode() is not None:
                    raise ProgramFailedError(
                        f"{command.name} ended at once: {watched.process.last_log_line()} "
                        f"(log: {command.log_path})"
                    )
                if time.monotonic() > deadline:
                    raise ProgramFailedError(
                        f"{command.name} is not ready after {START_SECONDS:.0f} s: "
                        f"see {command.log_path}"
                    )
                time.sleep(0.1)

    def check(self) -> None:
        """One look at every program: says who died, restarts it when its wait is over."""
        now = time.monotonic()
        for watched in [*self._adopted, *self._own]:
            if watched.restart_at is not None:
                if now >= watched.restart_at:
                    watched.process.start()
                    watched.started_at, watched.restart_at = now, None
            elif watched.process.returncode() is not None:
                self._plan_restart(watched, now)

    def stop(self) -> None:
        """Ends the programs started here, the last one first, without waiting in between."""
        for watched in reversed(self._own):
            watched.process.ask_to_stop()
        while self._own:
            self._own.pop().process.stop()

    def _plan_restart(self, watched: _Watched, now: float) -> None:
        if now - watched.started_at > STEADY_SECONDS:
            watched.num_deaths = 0
        wait = min(2.0**watched.num_deaths - 1, MAX_BACKOFF_SECONDS)  # 0, 1, 3, 7, 15, 30 s
        watched.num_deaths += 1
        watched.restart_at = now + wait
        command = watched.process.command
        self._say(
            f"{command.name} ended ({_describe_end(watched.process.returncode())}), "
            f"starting it again in {wait:.0f} s; its log: {command.log_path}"
        )


def _describe_end(returncode: int | None) -> str:
    if returncode is None or returncode >= 0:
        return f"exit status {returncode}"
    return f"signal {-returncode}"
