"""Making and starting a run, with its baseline."""

from uuid import UUID

from backend.api_client.client import ApiClient
from backend.contracts.runs import Run, RunCreate
from dashboard.components.run_form import baseline_of


def start_runs(api: ApiClient, federation_id: UUID, run: RunCreate, *, baseline: bool) -> Run:
    """Start a run and, if asked, its local-only baseline behind it; gives the run itself."""
    made = api.federations.create_run(federation_id, run)
    behind = api.federations.create_run(federation_id, baseline_of(run)) if baseline else None
    started = api.runs.start(made.id)
    if behind is not None:
        api.runs.start(behind.id)
    return started
