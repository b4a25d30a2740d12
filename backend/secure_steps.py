"""How far the session of a round with secure aggregation is; `backend.barrier` moves it on.

Keys, shares and masked inputs come from clients that hold the lease of their update; what is told
to open the sum comes from those whose update was accepted. Every function here needs the run's row
locked by the caller.
"""

from collections.abc import Sequence
from datetime import timedelta
from uuid import UUID

from sqlalchemy import ColumnElement, delete, func, select, update
from sqlalchemy.orm import Session

from backend.contracts.enums import EventKind, RoundStatus, RunStatus, SecureStep, UpdateStatus
from backend.contracts.round_policy import RoundPolicy
from backend.db.models import Client, ClientUpdate, Round, Run, SecureParty, SecureSession
from backend.journal import record_event
from backend.lifecycle import OPEN_UPDATES

_NEXT = {
    SecureStep.KEYS: SecureStep.SHARES,
    SecureStep.SHARES: SecureStep.INPUTS,
    SecureStep.INPUTS: SecureStep.UNMASKING,
}
_SENTENCES = {
    SecureStep.SHARES: "the keys of {count} clients are here, they exchange shares",
    SecureStep.INPUTS: "the shares of {count} clients are here, they train",
    SecureStep.UNMASKING: "the masked updates of {count} clients are here; {threshold} of them "
    "must tell their shares before the sum opens",
}


def find_secure(session: Session, round_id: UUID) -> SecureSession | None:
    """The session of a round, read anew; None: its updates are not masked."""
    return session.scalars(
        select(SecureSession)
        .where(SecureSession.round_id == round_id)
        .execution_options(populate_existing=True)
    ).one_or_none()


def awaited(session: Session, secure: SecureSession) -> Sequence[tuple[UUID, str]]:
    """Clients whose next message is missing, by id and name, in order of their names.

    In the steps `keys`, `shares` and `inputs` these are clients at work; in `unmasking` those whose
    masked update is in the sum and who have told no share.
    """
    query = (
        select(Client.id, Client.name)
        .join(ClientUpdate, ClientUpdate.client_id == Client.id)
        .outerjoin(SecureParty, SecureParty.client_update_id == ClientUpdate.id)
        .where(ClientUpdate.round_id == secure.round_id)
        .order_by(Client.name)
    )
    at_work = ClientUpdate.status.in_(OPEN_UPDATES)
    match secure.step:
        case SecureStep.KEYS:
            query = query.where(at_work, SecureParty.client_update_id.is_(None))
        case SecureStep.SHARES:
            query = query.where(at_work, SecureParty.shares.is_(None))
        case SecureStep.INPUTS:
            query = query.where(at_work)
        case SecureStep.UNMASKING:
            query = query.where(_survived(), SecureParty.revealed.is_(None))
    return [(client_id, name) for client_id, name in session.execute(query).all()]


def num_done(session: Session, secure: SecureSession) -> int:
    """How many clients have sent the message of the present step, and still count."""
    query = (
        select(func.count())
        .select_from(ClientUpdate)
        .join(SecureParty, SecureParty.client_update_id == ClientUpdate.id)
        .where(ClientUpdate.round_id == secure.round_id)
    )
    match secure.step:
        case SecureStep.KEYS:
            query = query.where(ClientUpdate.status.in_(OPEN_UPDATES))
        case SecureStep.SHARES:
            query = query.where(
                ClientUpdate.status.in_(OPEN_UPDATES), SecureParty.shares.is_not(None)
            )
        case SecureStep.INPUTS:
            query = query.where(ClientUpdate.status == UpdateStatus.ACCEPTED)
        case SecureStep.UNMASKING:
            query = query.where(_survived(), SecureParty.revealed.is_not(None))
    return session.scalar(query) or 0


def next_step(session: Session, round_: Round, secure: SecureSession, policy: RoundPolicy) -> None:
    """Moves the session on; every step has the deadline of the round for itself."""
    count = num_done(session, secure)
    if secure.step is SecureStep.KEYS:
        _forget_parties(session, round_.id, only_gone=True)  # the roster names who is there
    secure.step = _NEXT[secure.step]
    restart_clock(session, round_, secure, policy)
    text = _SENTENCES[secure.step].format(count=count, threshold=secure.threshold)
    record_event(
        session,
        round_.run_id,
        EventKind.SECURE_STEP,
        f"Round {round_.round_number}: {text}.",
        round_number=round_.round_number,
        step=secure.step.value,
    )


def new_session(session: Session, secure: SecureSession) -> None:
    """Begins again with fresh keys: allowed only before anybody was asked to unmask."""
    _forget_parties(session, secure.round_id, only_gone=False)
    secure.number += 1
    secure.step = SecureStep.KEYS
    secure.step_since = func.now()
    session.flush()


def restart_clock(
    session: Session, round_: Round, secure: SecureSession, policy: RoundPolicy
) -> None:
    """Gives the present step its whole time."""
    seconds = policy.deadline_seconds
    session.execute(
        update(Round)
        .where(Round.id == round_.id)
        .values(
            is_overdue=False,
            deadline_at=None if seconds is None else func.now() + timedelta(seconds=seconds),
        )
        .execution_options(synchronize_session=False)
    )
    secure.step_since = func.now()
    session.flush()


def too_few_told(session: Session, round_: Round, secure: SecureSession) -> str:
    """Why the sum of a round stays closed, for people."""
    told = num_done(session, secure)
    silent = ", ".join(name for _, name in awaited(session, secure))
    return (
        f"The sum of round {round_.round_number} stays closed, and with it every update: {told} "
        f"{'client' if told == 1 else 'clients'} told their shares in time, {secure.threshold} "
        f"are needed. Silent: {silent}. Start their agents, then resume the run."
    )


def silent_rounds(session: Session, hours: float) -> list[tuple[UUID, UUID]]:
    """Round and run of sums that nobody has opened in so many hours."""
    rows = session.execute(
        select(Round.id, Round.run_id)
        .join(SecureSession, SecureSession.round_id == Round.id)
        .join(Run, Round.run_id == Run.id)
        .where(
            Run.status == RunStatus.RUNNING,
            Round.status == RoundStatus.OPEN,
            SecureSession.step == SecureStep.UNMASKING,
            SecureSession.step_since < func.now() - timedelta(hours=hours),
        )
    ).all()
    return [(round_id, run_id) for round_id, run_id in rows]


def _survived() -> ColumnElement[bool]:
    return ClientUpdate.aggregated_in.is_not(None)


def _forget_parties(session: Session, round_id: UUID, *, only_gone: bool) -> None:
    of_round = select(ClientUpdate.id).where(ClientUpdate.round_id == round_id)
    if only_gone:
        of_round = of_round.where(ClientUpdate.status.not_in(OPEN_UPDATES))
    session.execute(
        delete(SecureParty)
        .where(SecureParty.client_update_id.in_(of_round))
        .execution_options(synchronize_session=False)
    )
