"""`/runs/{id}/pause`, `/resume` and `/clone`."""

from uuid import UUID

from fastapi import APIRouter, status

from backend.auth.dependencies import Operator
from backend.contracts.runs import Run, RunClone
from backend.runs import control
from backend.runs.service import require_run
from backend.storage.usage import require_room
from backend.web.dependencies import AppSettings, DbSession, Store
from backend.web.problems import problem_answers

router = APIRouter(tags=["runs"])


@router.post("/runs/{run_id}/pause", status_code=status.HTTP_202_ACCEPTED, summary="Pause a run")
def pause_run(run_id: UUID, principal: Operator, session: DbSession) -> Run:
    """Begins nothing new until the run is resumed; clients at work finish and count."""
    return control.pause_run(session, run_id, principal)


@router.post(
    "/runs/{run_id}/resume",
    status_code=status.HTTP_202_ACCEPTED,
    summary="Resume a run",
    responses=problem_answers(507),
)
def resume_run(run_id: UUID, principal: Operator, session: DbSession, settings: AppSettings) -> Run:
    """Goes on with a paused run, or with a failed one in the round in which it failed."""
    require_room(session, require_run(session, run_id).federation_id, settings)
    return control.resume_run(session, run_id, principal)


@router.post("/runs/{run_id}/clone", status_code=status.HTTP_201_CREATED, summary="Copy a run")
def clone_run(
    run_id: UUID, body: RunClone, principal: Operator, session: DbSession, store: Store
) -> Run:
    """A new run with the same settings, and another seed if one is given."""
    return control.clone_run(session, store, run_id, body, principal)
