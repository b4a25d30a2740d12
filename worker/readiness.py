"""Tells from outside whether a worker takes jobs: `celery ... worker --include worker.readiness`.

A ping would not do: a worker that trains does not answer until it is done.
"""

from typing import Any

from celery.signals import worker_ready, worker_shutdown

from backend.settings import get_settings


@worker_ready.connect
def _announce(**_: Any) -> None:
    path = get_settings().ready_file
    if path is not None:
        path.touch()


@worker_shutdown.connect
def _withdraw(**_: Any) -> None:
    path = get_settings().ready_file
    if path is not None:
        path.unlink(missing_ok=True)
