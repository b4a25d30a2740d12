"""Clients that stay out of a run, by their own or their owner's will.

What such a client has handed in before counts; nothing else of it is asked for. The run goes on
without it where its policy lets fewer clients be enough, and else ends with a sentence. A run that
is paused or has not begun waits instead, so that the refusal can be withdrawn.
"""

from collections.abc import Sequence
from uuid import UUID

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session, joinedload

from backend.barrier import LostClient, refusal_sentence, settle_round
from backend.contracts.enums import AttemptOutcome, EventKind, RoundStatus, RunStatus, UpdateStatus
from backend.contracts.jobs import Job
from backend.db.models import Attempt, Client, ClientUpdate, Refusal, Round, Run
from backend.journal import record_event
from backend.lifecycle import OPEN_UPDATES, change_update

REFUSABLE = (RunStatus.CREATED, RunStatus.QUEUED, RunStatus.RUNNING, RunStatus.PAUSED)
WITHDRAWABLE = (RunStatus.CREATED, RunStatus.QUEUED, RunStatus.PAUSED, RunStatus.FAILED)
"""A failed run may be resumed; in a running one the others have gone on."""


def refusals_of(session: Session, run_id: UUID) -> Sequence[Refusal]:
    """The clients that stay out of a run, in the order of their names."""
    return session.scalars(
        select(Refusal)
        .join(Client, Refusal.client_id == Client.id)
        .where(Refusal.run_id == run_id)
        .options(joinedload(Refusal.client))
        .order_by(Client.name)
    ).all()


def refuse(session: Session, run: Run, refusal: Refusal) -> list[Job]:
    """Takes a client out of a run; gives the jobs to send after the commit.

    Args:
        session: the run's row is locked in it, and its status is one of `REFUSABLE`.
        run: which run.
        refusal: of a member; already in the session.
    """
    client = refusal.client
    _decline(session, run.id, client.id, refusal.reason)
    sentence = refusal_sentence(client.name, refusal.reason)
    record_event(
        session,
        run.id,
        EventKind.CLIENT_REFUSED,
        sentence,
        client_id=client.id,
        round_number=run.round_number or None,
        reason=refusal.reason,
        by=refusal.refused_by,
    )
    if run.status is not RunStatus.RUNNING:
        return []
    return settle_round(session, run.id, LostClient(client.id, client.name, sentence))


def withdraw(session: Session, run: Run, refusal: Refusal, by: str) -> None:
    """Lets a client take part again; an update that it declined in the open round waits for it.

    Args:
        session: the run's row is locked in it, and its status is one of `WITHDRAWABLE`.
        run: which run.
        refusal: of that run.
        by: name of who withdraws it.
    """
    client = refusal.client
    session.delete(refusal)
    session.flush()
    for update_id in _declined(session, run.id, client.id):
        change_update(
            session,
            update_id,
            UpdateStatus.PENDING,
            first_fence=ClientUpdate.fence,
            enqueued_at=func.now(),
            lease_expires_at=None,
            shared_sha256=None,
            stage=None,
            ended_at=None,
            error=None,
        )
    record_event(
        session,
        run.id,
        EventKind.REFUSAL_WITHDRAWN,
        f"{client.name} takes part again.",
        client_id=client.id,
        by=by,
    )


def _decline(session: Session, run_id: UUID, client_id: UUID, reason: str) -> None:
    """Ends what the client still had to do in the run; whoever does it loses the lease."""
    declined = session.scalars(
        select(ClientUpdate.id)
        .join(Round, ClientUpdate.round_id == Round.id)
        .where(
            Round.run_id == run_id,
            ClientUpdate.client_id == client_id,
            ClientUpdate.status.in_(OPEN_UPDATES),
        )
        .order_by(ClientUpdate.id)
    ).all()
    for update_id in declined:
        change_update(session, update_id, UpdateStatus.DECLINED, error=reason)
    session.execute(
        update(Attempt)
        .where(Attempt.client_update_id.in_(declined), Attempt.outcome.is_(None))
        .values(outcome=AttemptOutcome.CANCELLED, ended_at=func.now())
    )


def _declined(session: Session, run_id: UUID, client_id: UUID) -> Sequence[UUID]:
    """Of the round that is open, or that failed and is resumed with the run."""
    return session.scalars(
        select(ClientUpdate.id)
        .join(Round, ClientUpdate.round_id == Round.id)
        .where(
            Round.run_id == run_id,
            Round.status.in_([RoundStatus.OPEN, RoundStatus.FAILED]),
            ClientUpdate.client_id == client_id,
            ClientUpdate.status == UpdateStatus.DECLINED,
        )
    ).all()
