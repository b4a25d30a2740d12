"""Background jobs: their names, payloads and queues. Programs enqueue by name, never by import."""

from enum import StrEnum
from typing import Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict


class Queue(StrEnum):
    """Queues that workers listen to."""

    TRAIN = "train"  # long: client training; one at a time per device
    CONTROL = "control"  # short: opening and closing rounds, aggregation


class Job(BaseModel):
    """Base of all payloads; `name` is the Celery task name."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class OpenRound(Job):
    """Open a run's next round, or start the run."""

    name: Literal["open_round"] = "open_round"
    run_id: UUID


class RunClientUpdate(Job):
    """Do one client's part of a round."""

    name: Literal["run_client_update"] = "run_client_update"
    client_update_id: UUID


class CloseRound(Job):
    """Aggregate a round whose updates are all in."""

    name: Literal["close_round"] = "close_round"
    round_id: UUID


QUEUES: dict[type[Job], Queue] = {
    OpenRound: Queue.CONTROL,
    RunClientUpdate: Queue.TRAIN,
    CloseRound: Queue.CONTROL,
}
