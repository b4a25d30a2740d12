"""A platform in this process, whose API an agent reaches without a network."""

from dataclasses import dataclass
from typing import Any
from uuid import UUID

import httpx
from sqlalchemy import select
from starlette.testclient import TestClient

from backend.api_client import ApiClient
from backend.contracts.jobs import CloseRound, Job, OpenRound, RunClientUpdate
from backend.contracts.params.h2tune import H2TuneParams
from backend.contracts.privacy import NO_PRIVACY, PrivacySettings
from backend.contracts.training import TrainingConfig
from backend.db.models import Client, Run
from tests.backend.rows import add_clients, add_run
from worker import rounds
from worker.platform import Platform


class InProcess(httpx.BaseTransport):
    """Hands requests to the application; paths that end in a word of `dead` fail."""

    def __init__(self, http: TestClient) -> None:
        self._http = http
        self.dead: set[str] = set()
        self.seen: list[str] = []

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        action = request.url.path.rpartition("/")[2]
        self.seen.append(action)
        if action in self.dead:
            raise httpx.ConnectError("the line is dead")
        headers = {
            k: v
            for k, v in request.headers.items()
            if k in {"authorization", "content-type", "upload-offset"}
        }
        answer: Any = self._http.request(
            request.method,
            request.url.raw_path.decode(),
            headers=headers,
            content=request.read(),
        )
        return httpx.Response(
            answer.status_code, headers=dict(answer.headers), content=answer.content
        )


@dataclass(frozen=True)
class Site:
    """The platform and one remote client of it."""

    platform: Platform
    sent: list[Job]
    line: InProcess
    api: ApiClient
    client_id: UUID

    def start_run(
        self,
        num_rounds: int = 1,
        *,
        params: H2TuneParams | None = None,
        privacy: PrivacySettings = NO_PRIVACY,
        **training: Any,
    ) -> UUID:
        """A run of the remote client and a managed one, opened."""
        with self.platform.session_factory() as session:
            managed = add_clients(session, 1)[0]
            remote = session.get_one(Client, self.client_id)
            run = add_run(session, [managed, remote], "queued", num_rounds=num_rounds)
            run.strategy = (params or H2TuneParams()).model_dump(mode="json")
            run.privacy = privacy.model_dump(mode="json")
            settings = TrainingConfig(local_steps=2, max_eval_examples=2, **training)
            run.training = settings.model_dump(mode="json")
            run.federation.global_rank = 8
            session.commit()
        rounds.open_round(self.platform, run.id)
        return run.id

    def do_jobs(self) -> None:
        """Everything that workers of the platform can do now."""
        while self.sent:
            match self.sent.pop(0):
                case OpenRound(run_id=run_id):
                    rounds.open_round(self.platform, run_id)
                case RunClientUpdate(client_update_id=update_id):
                    rounds.run_client_update(self.platform, update_id, "by-hand")
                case CloseRound(round_id=round_id):
                    rounds.close_round(self.platform, round_id)

    def run(self, run_id: UUID) -> Run:
        with self.platform.session_factory() as session:
            return session.scalars(select(Run).where(Run.id == run_id)).one()
