"""Background jobs leave here, by name, after the commit. The only Celery import of the backend."""

import logging
from functools import lru_cache

from celery import Celery
from kombu.exceptions import OperationalError
from sqlalchemy.orm import Session

from backend.contracts.jobs import QUEUES, Job
from backend.settings import Settings, get_settings

logger = logging.getLogger(__name__)


def create_celery(settings: Settings) -> Celery:
    """The Celery application that producers and workers share.

    Jobs are acknowledged when they start: a job that dies with its worker is not the broker's
    business, because leases in the database and the sweep bring it back.

    Raises:
        ValueError: no Redis is configured.
    """
    if settings.redis_url is None:
        raise ValueError("REDIS_URL is not set; start through `fedbraid up` or set it")
    app = Celery("fedbraid", broker=settings.redis_url.get_secret_value())
    app.conf.update(
        broker_connection_retry_on_startup=True,
        broker_transport_options={"socket_timeout": 10, "socket_connect_timeout": 5},
        task_acks_late=False,
        task_ignore_result=True,
        task_publish_retry_policy={"max_retries": 2, "interval_start": 0.1, "interval_max": 0.5},
        task_serializer="json",
        accept_content=["json"],
        worker_hijack_root_logger=False,
        worker_prefetch_multiplier=1,
        worker_send_task_events=False,
    )
    return app


@lru_cache
def _producer() -> Celery:
    return create_celery(get_settings())


def enqueue(job: Job) -> None:
    """Sends a job now. If the broker is away this is logged: the sweep sends it again."""
    payload = job.model_dump(mode="json")
    name = payload.pop("name")
    try:
        _producer().send_task(name, kwargs=payload, queue=QUEUES[type(job)].value)
    except OperationalError as error:
        logger.warning("job %s was not sent, the sweep will repeat it: %s", name, error)


def commit_and_enqueue(session: Session, *jobs: Job) -> None:
    """Commits, and only then lets the jobs go: no job ever meets rows that are not there."""
    session.commit()
    for job in jobs:
        enqueue(job)
