"""The platform's programs, started in an instant and killed without warning.

A program starts by a fork of a process that has imported torch and its like once, and then runs the
very command with which `fedbraid up` starts it. Only the imports are shared.
"""

import multiprocessing
import os
import runpy
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path

from backend.local.launcher import bind_to_parent
from backend.local.processes import Command

HEAVY = [
    "backend.main",
    "backend.cli",
    "celery.bin.celery",
    "celery.bin.worker",
    "celery.worker.worker",
    "celery.concurrency.solo",
    "kombu.transport.redis",
    "peft",
    "sklearn.datasets",
    "torch",
    "transformers.models.vit.modeling_vit",
    "uvicorn.main",
    "worker.agent.cli",
    "worker.rounds",
]
"""What takes long to import; nothing here may read the settings or start a thread."""


def fork_context() -> ForkServerContext:
    """Where programs come from; the imports happen at the first start."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(HEAVY)
    return context


class Program:
    """One program of the platform: `python -m module argument...` with its environment and log."""

    def __init__(
        self,
        context: ForkServerContext,
        name: str,
        module: str,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        log_path: Path,
    ) -> None:
        self.name = name
        self.restart_at: float | None = None  # set while it is dead on purpose
        self._context = context
        self._arguments = (module, list(arguments), dict(environment), str(log_path))
        self._process: ForkServerProcess | None = None

    @classmethod
    def of(cls, context: ForkServerContext, command: Command, **variables: str) -> "Program":
        """What `command` would start."""
        module, *arguments = command.argv[command.argv.index("-m") + 1 :]
        environment = {**command.environment, **variables}
        return cls(context, command.name, module, arguments, environment, command.log_path)

    def start(self) -> None:
        self.restart_at = None
        self._process = self._context.Process(target=_become, args=self._arguments, daemon=True)
        self._process.start()

    @property
    def exit_status(self) -> int | None:
        """None while it runs, or was never started."""
        return None if self._process is None else self._process.exitcode

    def kill(self, away_seconds: float) -> bool:
        """Ends it by SIGKILL, to be started again later; False: it is dead already."""
        if self._process is None or self.restart_at is not None or not self._process.is_alive():
            return False
        self._process.kill()
        self._process.join()
        self.restart_at = time.monotonic() + away_seconds
        return True

    def stop(self) -> None:
        if self._process is not None and self._process.is_alive():
            self._process.kill()
            self._process.join()

    def wait(self) -> int | None:
        """Its exit status, once it has ended by itself."""
        if self._process is not None:
            self._process.join()
        return self.exit_status


def _become(module: str, arguments: list[str], environment: dict[str, str], log_path: str) -> None:
    # Not the death of the tests' own process: that takes the process of the imports with it.
    bind_to_parent(os.getppid(), signal.SIGKILL)
    log = os.open(log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
