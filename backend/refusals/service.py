"""Refusing a run for a client, and withdrawing that: by the client itself or by who operates it."""

from uuid import UUID

from sqlalchemy.orm import Session

from backend import participation
from backend.audit import record_audit
from backend.auth.principals import Principal
from backend.contracts.common import Page
from backend.contracts.refusals import Refusal, RefusalCreate
from backend.db import models
from backend.errors import ConflictError, NotFoundError
from backend.jobs import commit_and_enqueue
from backend.lifecycle import lock_run
from backend.refusals import repository
from backend.runs.service import require_run
from backend.web.paging import fetch_page


def refuse(session: Session, client_id: UUID, request: RefusalCreate, actor: Principal) -> Refusal:
    """Takes a client out of a run; commits, and then what follows leaves. Twice: the first stays.

    Raises:
        NotFoundError: no such run that the client could take part in.
        ConflictError: the run has ended.
    """
    client = repository.find_member(session, client_id, request.run_id)
    if client is None:
        raise NotFoundError(f"There is no run {request.run_id} of this client's.")
    run = lock_run(session, request.run_id)
    known = repository.find_refusal(session, client_id, run.id)
    if known is not None:
        return describe(known)
    if run.status not in participation.REFUSABLE:
        raise ConflictError(
            f"Run {run.id} is {run.status.value}: nothing of it is left to refuse.",
            code="run_ended",
        )
    refusal = models.Refusal(
        run_id=run.id, client=client, reason=request.reason, refused_by=actor.name
    )
    session.add(refusal)
    session.flush()
    session.refresh(refusal, ["created_at"])
    answer = describe(refusal)
    jobs = participation.refuse(session, run, refusal)
    record_audit(
        session, actor, "client.refuse_run", client_id, run_id=str(run.id), reason=request.reason
    )
    commit_and_enqueue(session, *jobs)
    return answer


def withdraw(session: Session, client_id: UUID, refusal_id: UUID, actor: Principal) -> None:
    """Lets a client take part in a run again.

    Raises:
        NotFoundError: the client has no such refusal.
        ConflictError: the run goes on without the client, or has ended.
    """
    refusal = repository.find_by_id(session, client_id, refusal_id)
    if refusal is None:
        raise NotFoundError(f"There is no refusal {refusal_id} of this client's.")
    run = lock_run(session, refusal.run_id)
    if run.status not in participation.WITHDRAWABLE:
        raise ConflictError(
            f"Run {run.id} is {run.status.value}; a refusal can be withdrawn before the run "
            "begins, and while it is paused or has failed. Pause the run first.",
            code="refusal_stands",
        )
    record_audit(session, actor, "client.withdraw_refusal", client_id, run_id=str(run.id))
    participation.withdraw(session, run, refusal, actor.name)


def list_of_client(
    session: Session, client_id: UUID, cursor: UUID | None, limit: int
) -> Page[Refusal]:
    """A client's refusals that stand, newest first."""
    query = repository.of_client_query(client_id)
    return fetch_page(session, query, models.Refusal.id, cursor, limit, describe)


def list_of_run(session: Session, run_id: UUID) -> list[Refusal]:
    """The clients that stay out of a run, by name.

    Raises:
        NotFoundError: no such run.
    """
    require_run(session, run_id)
    return [describe(refusal) for refusal in participation.refusals_of(session, run_id)]


def describe(refusal: models.Refusal) -> Refusal:
    """A row as an answer."""
    return Refusal(
        id=refusal.id,
        run_id=refusal.run_id,
        client_id=refusal.client_id,
        client_name=refusal.client.name,
        reason=refusal.reason,
        refused_by=refusal.refused_by,
        created_at=refusal.created_at,
    )
