"""`/runs/{id}/pause`, `/resume` and `/clone`."""

from uuid import UUID

from fastapi import APIRouter, status

from backend.auth.dependencies import Operator
from backend.contracts.runs import Run, RunClone
from backend.runs import control
from backend.web.dependencies import DbSession

router = APIRouter(tags=["runs"])


@router.post("/runs/{run_id}/pause", status_code=status.HTTP_202_ACCEPTED, summary="Pause a run")
def pause_run(run_id: UUID, principal: Operator, session: DbSession) -> Run:
    """Begins nothing new until the run is resumed; clients at work finish and count."""
    return control.pause_run(session, run_id, principal)


@router.post("/runs/{run_id}/resume", status_code=status.HTTP_202_ACCEPTED, summary="Resume a run")
def resume_run(run_id: UUID, principal: Operator, session: DbSession) -> Run:
    """Goes on with a paused run, or with a failed one in the round in which it failed."""
    return control.resume_run(session, run_id, principal)


@router.post("/runs/{run_id}/clone", status_code=status.HTTP_201_CREATED, summary="Copy a run")
def clone_run(run_id: UUID, body: RunClone, principal: Operator, session: DbSession) -> Run:
    """A new run with the same settings, and another seed if one is given."""
    return control.clone_run(session, run_id, body, principal)
