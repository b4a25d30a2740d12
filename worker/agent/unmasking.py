"""Telling shares when a round's masked updates are in: beside the agent's other work.

A round waits for this, so it must not wait for a training of another run.
"""

import logging
import time
from dataclasses import dataclass, field
from threading import Event, Thread
from uuid import UUID

from backend.api_client import ApiClient, ApiClientError, ApiError
from backend.contracts.enums import SecureStep
from backend.contracts.secure_aggregation import SESSION_OVER
from worker.agent.party_file import PartyFile
from worker.agent.secure_party import revealed
from worker.agent.store import StateFolder
from worker.federated.privacy.secure_aggregation.errors import ProtocolError

logger = logging.getLogger(__name__)

POLL_SECONDS = 2.0
PATIENT_POLL_SECONDS = 60.0  # after a run has failed, until a person resumes it or never
_NOT_FOUND = 404


@dataclass(frozen=True, slots=True)
class Unmasking:
    """Answers for all sessions in which this client's masked update was sent."""

    api: ApiClient
    client_id: UUID
    store: StateFolder
    stop: Event
    not_before: dict[UUID, float] = field(default_factory=dict)  # by client update

    def start(self) -> None:
        """Answers until `stop` is set, in a thread of its own."""
        Thread(target=self._answer_for_ever, name="unmasking", daemon=True).start()

    def answer(self) -> None:
        """Asks once for every session that is open here, and tells what is due."""
        for file in self.store.open_parties():
            if time.monotonic() < self.not_before.get(file.client_update_id, 0.0):
                continue
            try:
                self._answer_one(file)
            except ApiError as error:
                if error.code == SESSION_OVER or error.status == _NOT_FOUND:
                    self.store.save_party(file.model_copy(update={"root": ""}))
                    logger.info("%s is over: its secrets are forgotten", _name(file))
                else:
                    logger.warning("%s: %s", _name(file), error)
            except ApiClientError as error:
                logger.warning("%s: %s", _name(file), error)
            except ProtocolError:
                self.store.save_party(file.model_copy(update={"root": ""}))
                logger.exception("%s does not follow the protocol: nothing is told", _name(file))

    def _answer_one(self, file: PartyFile) -> None:
        state = self.api.agent.secure_state(file.client_update_id)
        if not state.is_open:
            self.not_before[file.client_update_id] = time.monotonic() + PATIENT_POLL_SECONDS
            return
        if state.session != file.session or state.step is not SecureStep.UNMASKING:
            return
        if self.client_id not in state.survivors:
            self.store.save_party(file.model_copy(update={"root": ""}))
            return
        if file.survivors is None:
            file = file.model_copy(update={"survivors": state.survivors})
            self.store.save_party(file)  # before a word leaves: never for another sum
        self.api.agent.reveal(file.client_update_id, revealed(str(self.client_id), file))
        self.store.save_party(file.model_copy(update={"root": ""}))
        logger.info("%s: the shares are told, the secrets forgotten", _name(file))

    def _answer_for_ever(self) -> None:
        while not self.stop.wait(POLL_SECONDS):
            self.answer()


def _name(file: PartyFile) -> str:
    return f"the secure session of round {file.round_number} of run {file.run_id}"
