"""One leased update while it is being done: keeps the lease alive, settles how it ended."""

import logging
import threading
from functools import partial
from types import TracebackType
from typing import Self
from uuid import UUID

from backend.api_client import ApiClient, ApiClientError, ApiError
from backend.contracts.agent import (
    LEASE_LOST,
    UPDATE_LATE,
    UPDATE_REFUSALS,
    AgentFailure,
    Heartbeat,
    Work,
)
from backend.contracts.secure_aggregation import SECURE_REFUSALS, SESSION_OVER
from worker.agent.errors import (
    AgentStoppingError,
    LeaseLostError,
    MaskingError,
    PrivacyLimitError,
    StateMissingError,
)
from worker.agent.patience import is_passing, patiently
from worker.federated.errors import (
    FederatedError,
    NonFiniteError,
    OutOfMemoryError,
    ProbeTextError,
    WireError,
)
from worker.federated.types import Progress

logger = logging.getLogger(__name__)

LONGEST_INTERVAL_SECONDS = 2.0
MAX_REASON = 2000  # characters that the platform takes
MAX_REFUSAL = 500
_PUBLIC = (
    MaskingError,
    NonFiniteError,
    OutOfMemoryError,
    ProbeTextError,
    StateMissingError,
    WireError,
)


class LeasedAttempt:
    """Context manager around one attempt.

    A thread sends heartbeats with the newest progress, so that the lease holds even while one long
    operation blocks the training. A platform that is away does not end the attempt: if nobody
    else took the update over meanwhile, the next heartbeat finds the lease as it was. On the way
    out:

    - a named error of the core is reported: the platform goes on without this client or ends the
      run, and the agent goes on. Only messages
      that cannot quote a row or a path leave this machine in full;
    - a run that breaks the terms of the client's owner is refused as a whole: the platform asks
      this client for nothing more of it;
    - an update that the platform refuses when it arrives is reported in the same way;
    - a lost lease ends quietly, and a stopping agent gives its update back;
    - anything else is a bug: it is reported without details, and ends the agent.

    """

    def __init__(self, api: ApiClient, client_id: UUID, work: Work, stop: threading.Event) -> None:
        self._api = api
        self._client_id = client_id
        self._work = work
        self._stop = stop
        self._progress = Progress("loading", 0, 0)
        self._lost = threading.Event()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._keep_alive, name="heartbeat", daemon=True)

    def report(self, progress: Progress) -> None:
        """Takes a sign of life from the training.

        Raises:
            LeaseLostError: what is computed would not be taken.
            AgentStoppingError: this agent was asked to stop.
        """
        self._progress = progress
        if self._lost.is_set():
            raise LeaseLostError
        if self._stop.is_set():
            raise AgentStoppingError

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
        if isinstance(error, ApiError) and error.code in {LEASE_LOST, SESSION_OVER, UPDATE_LATE}:
            error = LeaseLostError()
        match error:
            case LeaseLostError():
                logger.info("%s counts no more: dropped", self._name())
                return True
            case AgentStoppingError():
                self._give_back()
                return True
            case PrivacyLimitError():
                logger.warning("run %s is refused: %s", self._work.run_id, error)
                self._refuse_run(str(error))
                return True
            case FederatedError():
                logger.error("%s failed: %s", self._name(), error)
                self._report_failure(_public_reason(error))
                return True
            case ApiError() if error.code in UPDATE_REFUSALS | SECURE_REFUSALS:
                logger.error("%s was refused: %s", self._name(), error)
                self._report_failure(str(error))
                return True
            case ApiClientError():
                return False
            case Exception():
                self._report_failure(_public_reason(error))
        return False

    def _give_back(self) -> None:
        try:
            self._api.agent.release(self._work.client_update_id, self._work.fence)
        except ApiClientError as error:
            logger.warning("%s was not given back, its lease runs out: %s", self._name(), error)
        else:
            logger.info("%s was given back", self._name())

    def _refuse_run(self, reason: str) -> None:
        refuse = partial(
            self._api.clients.refuse, self._client_id, self._work.run_id, reason[:MAX_REFUSAL]
        )
        try:
            patiently(self._stop, refuse)
        except (ApiClientError, AgentStoppingError) as error:
            logger.warning("the refusal of run %s was not told: %s", self._work.run_id, error)

    def _report_failure(self, reason: str) -> None:
        failure = AgentFailure(fence=self._work.fence, reason=reason[:MAX_REASON])
        try:
            patiently(
                self._stop, lambda: self._api.agent.fail(self._work.client_update_id, failure)
            )
        except (ApiClientError, AgentStoppingError) as error:
            logger.warning("the failure of %s was not reported: %s", self._name(), error)

    def _keep_alive(self) -> None:
        recorded_step = -1
        interval = min(self._work.lease_seconds / 3, LONGEST_INTERVAL_SECONDS)
        while not self._done.wait(interval):
            progress = self._progress
            is_new = progress.step != recorded_step
            beat = Heartbeat(
                fence=self._work.fence,
                stage=progress.stage,
                step=progress.step,
                num_steps=progress.num_steps,
                values=dict(progress.values) if is_new else {},
            )
            if self._send(beat):
                recorded_step = progress.step
            if self._lost.is_set():
                return

    def _send(self, beat: Heartbeat) -> bool:
        try:
            self._api.agent.heartbeat(self._work.client_update_id, beat)
        except ApiError as error:
            if is_passing(error):
                logger.warning("no heartbeat for %s: %s", self._name(), error)
            else:
                logger.warning("%s is lost: %s", self._name(), error)
                self._lost.set()
            return False
        except ApiClientError as error:
            logger.warning("no heartbeat for %s: %s", self._name(), error)
            return False
        return True

    def _name(self) -> str:
        work = self._work
        return f"round {work.round_number} of run {work.run_id} (attempt {work.fence})"


def _public_reason(error: Exception) -> str:
    """Why the client failed, without anything of its data or its machine."""
    if isinstance(error, _PUBLIC):
        return str(error)
    what = "its settings, model or data" if isinstance(error, FederatedError) else "internal error"
    return f"{what} ({type(error).__name__}); the log of the client's agent has the details"
