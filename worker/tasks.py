"""Job names bound to functions of `worker.rounds`; no logic here."""

from uuid import UUID

from celery.worker import state

from worker import rounds
from worker.celery_app import app
from worker.platform import get_platform


def _is_stopping() -> bool:
    return state.should_stop is not None or state.should_terminate is not None


@app.task(name="open_round")
def open_round(run_id: str) -> None:
    """See `backend.contracts.jobs.OpenRound`."""
    rounds.open_round(get_platform(), UUID(run_id))


@app.task(name="run_client_update", bind=True)
def run_client_update(self: object, client_update_id: str) -> None:
    """See `backend.contracts.jobs.RunClientUpdate`."""
    worker = str(self.request.hostname)  # type: ignore[attr-defined]
    rounds.run_client_update(get_platform(), UUID(client_update_id), worker, _is_stopping)


@app.task(name="close_round")
def close_round(round_id: str) -> None:
    """See `backend.contracts.jobs.CloseRound`."""
    rounds.close_round(get_platform(), UUID(round_id))
