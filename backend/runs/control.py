"""Pausing, resuming and copying runs."""

from uuid import UUID

from sqlalchemy.orm import Session

from backend.audit import record_audit
from backend.auth.principals import UserPrincipal
from backend.contracts.runs import Run, RunClone, RunCreate
from backend.errors import ConflictError
from backend.jobs import commit_and_enqueue
from backend.lifecycle import lock_run
from backend.resumption import pause_run as pause
from backend.resumption import resume_run as resume
from backend.runs.service import create_run, get_run, require_run
from backend.storage import BlobStore


def pause_run(session: Session, run_id: UUID, actor: UserPrincipal) -> Run:
    """Lets a run begin nothing new until it is resumed.

    Raises:
        NotFoundError: no such run.
        ConflictError: it is not running, or a comparison owns it.
    """
    require_run(session, run_id)
    run = lock_run(session, run_id)
    if run.comparison_id is not None:
        raise ConflictError(
            f"Run {run_id} belongs to comparison {run.comparison_id}, whose other runs wait for "
            "its turn to end. Cancel it, or let it finish.",
            code="run_of_comparison",
        )
    if not pause(session, run_id, actor.name):
        raise ConflictError(
            f"Run {run_id} is {run.status.value}; only a running run can be paused.",
            code="run_not_pausable",
        )
    record_audit(session, actor, "run.pause", run_id)
    session.flush()
    session.refresh(run)
    return get_run(session, run_id)


def resume_run(session: Session, run_id: UUID, actor: UserPrincipal) -> Run:
    """Goes on with a paused run, or with a failed one in the round in which it failed.

    Commits, and then the jobs leave.

    Raises:
        NotFoundError: no such run.
        ConflictError: it is neither paused nor failed, or an imported copy.
    """
    run = require_run(session, run_id)
    was = run.status
    if run.copied_from is not None:
        raise ConflictError(
            f"Run {run_id} is an imported copy of run {run.copied_from}: its states and plans name "
            "the clients of that one. Use POST /api/v1/runs/{id}/clone for a new run with the same "
            "settings.",
            code="run_is_copy",
        )
    jobs = resume(session, run_id, actor.name)
    if jobs is None:
        raise ConflictError(
            f"Run {run_id} is {was.value}; only a paused or failed run can be resumed. Use "
            "POST /api/v1/runs/{id}/clone for a new run with the same settings.",
            code="run_not_resumable",
        )
    record_audit(session, actor, "run.resume", run_id, was=was.value)
    commit_and_enqueue(session, *jobs)
    session.refresh(run)
    return get_run(session, run_id)


def clone_run(
    session: Session, store: BlobStore, run_id: UUID, request: RunClone, actor: UserPrincipal
) -> Run:
    """A new run of the same federation with the same settings; it waits to be started.

    Raises:
        NotFoundError: no such run.
        InvalidError: members or probe texts have changed, and the strategy cannot serve them.
    """
    run = require_run(session, run_id)
    seed = run.seed if request.seed is None else request.seed
    settings = RunCreate.model_validate(
        {
            "strategy": run.strategy,
            "num_rounds": run.num_rounds,
            "seed": seed,
            "training": run.training,
            "privacy": run.privacy,
            "robustness": run.robustness,
            "round_policy": run.round_policy,
            "stop_when": run.stop_when,
        }
    )
    clone = create_run(session, store, run.federation_id, settings, actor)
    record_audit(session, actor, "run.clone", clone.id, source=str(run_id))
    return clone
