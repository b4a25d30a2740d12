"""A client update while it is being done: keeps its lease alive, and settles how it ended."""

import logging
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self

from sqlalchemy.exc import OperationalError

from backend import leases
from backend.errors import RetryableJobError
from backend.jobs import commit_and_enqueue
from backend.journal import record_metrics
from backend.leases import Claim, Result
from backend.storage.blobs import BlobStoreUnavailableError
from worker.federated.errors import FederatedError
from worker.federated.types import Progress
from worker.platform import Platform

logger = logging.getLogger(__name__)

PROGRESS_INTERVAL_SECONDS = 1.0
TRANSIENT_ERRORS = (OperationalError, BlobStoreUnavailableError, RetryableJobError)


class LeaseLostError(Exception):
    """The run was cancelled, or another worker took over: what is being computed counts no more."""


class WorkerStoppingError(Exception):
    """This worker was asked to stop; somebody else will do the update."""


class ActiveAttempt:
    """Context manager around one attempt.

    A thread sends a heartbeat with the newest progress about every second, so the lease holds
    even while one long operation blocks the training thread. On the way out:

    - a named error of the core fails the update with its message;
    - a lost lease or a stopping worker ends quietly, the update is done elsewhere;
    - services that are away leave the update to its lease: the sweep brings it back;
    - anything else is a bug: the update fails, and the error goes on to the log.
    """

    def __init__(
        self, platform: Platform, claim: Claim, is_stopping: Callable[[], bool] = lambda: False
    ) -> None:
        self._platform = platform
        self._claim = claim
        self._is_stopping = is_stopping
        self._progress = Progress("loading", 0, 0)
        self._lost = threading.Event()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._keep_alive, name="heartbeat", daemon=True)

    def report(self, progress: Progress) -> None:
        """Takes a sign of life from the training.

        Raises:
            LeaseLostError: what is computed would not be taken.
            WorkerStoppingError: this worker was asked to stop.
        """
        self._progress = progress
        if self._lost.is_set():
            raise LeaseLostError
        if self._is_stopping():
            raise WorkerStoppingError

    def finish(self, result: Result) -> None:
        """Hands the result in; the round closes when this was its last.

        Raises:
            LeaseLostError: it was not taken.
        """
        with self._platform.session_factory() as session:
            jobs = leases.accept(session, self._claim, result)
            if jobs is None:
                session.commit()  # a result that came too late is listed
                raise LeaseLostError
            commit_and_enqueue(session, *jobs)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        self._done.set()
        self._thread.join()
        if error is None:
            return False
        if isinstance(error, LeaseLostError):
            logger.info("attempt %s of %s ended: lease lost", *self._name())
            return True
        if isinstance(error, WorkerStoppingError):
            with self._platform.session_factory() as session:
                commit_and_enqueue(session, *leases.release(session, self._claim))
            return True
        if isinstance(error, TRANSIENT_ERRORS) or not isinstance(error, Exception):
            return False
        self._fail(error)
        return isinstance(error, FederatedError)

    def _fail(self, error: Exception) -> None:
        with self._platform.session_factory() as session:
            jobs = leases.fail(session, self._claim, describe_failure(error))
            commit_and_enqueue(session, *jobs)

    def _keep_alive(self) -> None:
        recorded_step = -1
        while not self._done.wait(PROGRESS_INTERVAL_SECONDS):
            progress = self._progress
            try:
                held = self._heartbeat(progress, is_new=progress.step != recorded_step)
            except OperationalError as error:
                logger.warning("no heartbeat for attempt %s of %s: %s", *self._name(), error.orig)
                continue
            recorded_step = progress.step
            if not held:
                self._lost.set()
                return

    def _heartbeat(self, progress: Progress, *, is_new: bool) -> bool:
        with self._platform.session_factory() as session:
            held = leases.heartbeat(
                session,
                self._claim,
                self._platform.settings.lease_seconds,
                stage=progress.stage,
                step=progress.step,
                num_steps=progress.num_steps,
            )
            if held and is_new and progress.values:
                record_metrics(
                    session,
                    self._claim.run_id,
                    self._claim.client_id,
                    self._claim.round_number,
                    progress.values,
                    step=progress.step,
                )
            session.commit()
        return held

    def _name(self) -> tuple[int, str]:
        return self._claim.fence, str(self._claim.client_update_id)


def describe_failure(error: Exception) -> str:
    """What people are told: the core's own sentence, or that it is our fault."""
    if isinstance(error, FederatedError):
        return str(error)
    return f"internal error ({type(error).__name__}); the worker's log has the details"
