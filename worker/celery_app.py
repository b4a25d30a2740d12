"""The Celery application of the workers: `celery --app worker.celery_app worker --queues train`."""

from typing import Any

from celery.signals import setup_logging, worker_init

from backend.jobs import create_celery
from backend.logging import configure_logging
from backend.settings import get_settings
from worker.devices import configure_torch

app = create_celery(get_settings())
app.conf.include = ["worker.tasks"]


@setup_logging.connect
def _configure_logging(**_: Any) -> None:
    configure_logging(get_settings().log_level)


@worker_init.connect
def _configure_process(**_: Any) -> None:
    configure_torch(get_settings().torch_threads)
