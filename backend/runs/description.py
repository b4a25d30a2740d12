"""Runs as answers, with their place in the queue."""

from functools import cached_property
from uuid import UUID

from sqlalchemy.orm import Session

from backend.contracts.enums import RunStatus
from backend.contracts.runs import Run
from backend.db import models
from backend.fairness import queue_positions
from backend.turns import waiting_places


def describe_run(session: Session, run: models.Run) -> Run:
    """One run."""
    return RunDescriber(session).describe(run)


class RunDescriber:
    """Describes the runs of one answer; looks at each queue once, and only where it matters."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._of_comparisons: dict[UUID, dict[UUID, int]] = {}

    def describe(self, run: models.Run) -> Run:
        """A row as an answer."""
        answer = Run.model_validate(run)
        if run.status is RunStatus.RUNNING:
            answer.queue_position = self._of_running.get(run.id)
        elif run.status is RunStatus.QUEUED and run.comparison_id is not None:
            answer.queue_position = self._waiting(run.comparison_id).get(run.id)
        return answer

    @cached_property
    def _of_running(self) -> dict[UUID, int]:
        return queue_positions(self._session)

    def _waiting(self, comparison_id: UUID) -> dict[UUID, int]:
        if comparison_id not in self._of_comparisons:
            self._of_comparisons[comparison_id] = waiting_places(self._session, comparison_id)
        return self._of_comparisons[comparison_id]
