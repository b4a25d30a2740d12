"""When a round closes: who is still awaited, who is left out, and what is aggregated.

A run has at most one open round. An update counts in the round that is open when it is accepted,
which is a later one than its own where the policy carries stragglers over. Every function here
needs the run's row locked by the caller, so of two clients that finish together the second sees
the first, and exactly one of them finds the round complete.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import ColumnElement, and_, func, or_, select, update
from sqlalchemy.orm import Session

from backend.contracts.enums import (
    AttemptOutcome,
    EventKind,
    RoundKind,
    RoundStatus,
    SecureStep,
    UpdateStatus,
)
from backend.contracts.jobs import CloseRound, Job
from backend.contracts.round_policy import RoundPolicy
from backend.db.models import Attempt, Client, ClientUpdate, Refusal, Round, Run, SecureSession
from backend.journal import record_event
from backend.lifecycle import OPEN_UPDATES, change_round, change_update, fail_run
from backend.secure_steps import awaited, find_secure, next_step, num_done, too_few_told


@dataclass(frozen=True, slots=True)
class LostClient:
    """A client that will send nothing, and why, as a whole sentence."""

    client_id: UUID
    name: str
    sentence: str


@dataclass(frozen=True, slots=True)
class _Tally:
    arrived: int
    open_own: int  # updates of this round on which clients are still at work
    open_all: int  # with those carried over from earlier rounds
    quorum: int

    @property
    def possible(self) -> int:
        return self.arrived + self.open_all


def settle_round(session: Session, run_id: UUID, lost: LostClient | None = None) -> list[Job]:
    """Closes the run's open round if it may close, and fails the run if it never can.

    Args:
        session: the run's row is locked in it.
        run_id: of which run.
        lost: the client whose end is the reason for asking.

    Returns:
        The aggregation job, to be sent after the commit, or nothing.
    """
    round_ = session.scalars(
        select(Round)
        .where(Round.run_id == run_id, Round.status == RoundStatus.OPEN)
        .execution_options(populate_existing=True)
    ).one_or_none()
    if round_ is None:
        return []
    policy = _policy(session, run_id)
    tally = _tally(session, round_)
    if tally.possible < tally.quorum:
        lost = lost or _refusing(session, run_id)
        fail_run(session, run_id, _out_of_reach(round_, policy, tally.quorum, tally.possible, lost))
        return []
    if lost is not None:
        _record_left_out(session, round_, tally.quorum, lost)
    goes_ahead = _goes_ahead(round_, policy, tally)
    secure = find_secure(session, round_.id)
    if secure is not None and secure.step is not SecureStep.INPUTS:
        return _settle_exchange(session, round_, secure, policy, tally.quorum)
    if tally.arrived < tally.quorum or (tally.open_own and not goes_ahead):
        return []
    if secure is None and not change_round(session, round_.id, RoundStatus.AGGREGATING):
        return []
    session.execute(
        update(ClientUpdate)
        .where(ClientUpdate.id.in_(select(ClientUpdate.id).where(_arrived(round_))))
        .values(aggregated_in=round_.round_number)
        .execution_options(synchronize_session=False)
    )
    if secure is not None:
        drop_open_updates(session, run_id, f"{_name(round_)} closed without it")
        next_step(session, round_, secure, policy)
        return []  # the sum is closed until enough clients tell their shares
    if policy.stragglers == "drop" or round_.kind is RoundKind.GAUGE:
        drop_open_updates(session, run_id, f"{_name(round_)} closed without it")
    return [CloseRound(round_id=round_.id)]


def _settle_exchange(
    session: Session, round_: Round, secure: SecureSession, policy: RoundPolicy, quorum: int
) -> list[Job]:
    """Moves a secure session on from an exchange, or opens its sum; nothing while it waits."""
    gives_up = round_.is_overdue and policy.stragglers != "wait"
    done = num_done(session, secure)
    if secure.step is SecureStep.UNMASKING:
        if done < secure.threshold:
            if gives_up:
                fail_run(session, round_.run_id, too_few_told(session, round_, secure))
            return []
        if not change_round(session, round_.id, RoundStatus.AGGREGATING):
            return []
        return [CloseRound(round_id=round_.id)]
    late = [client_id for client_id, _ in awaited(session, secure)]
    if done < quorum or (late and not gives_up):
        return []
    reason = f"{_name(round_)} went on after the exchange of {secure.step.value}"
    drop_open_updates(session, round_.run_id, reason, late)
    next_step(session, round_, secure, policy)
    return []


def notice_deadline(session: Session, round_id: UUID) -> list[Job]:
    """Lets a round whose deadline has passed close, by the database's clock; nothing before."""
    round_ = session.execute(
        update(Round)
        .where(
            Round.id == round_id,
            Round.status == RoundStatus.OPEN,
            Round.deadline_at < func.now(),
            ~Round.is_overdue,
        )
        .values(is_overdue=True)
        .returning(Round.run_id, Round.round_number, Round.kind)
    ).first()
    if round_ is None:
        return []
    secure = find_secure(session, round_id)
    late = (
        session.scalars(
            select(Client.name)
            .join(ClientUpdate, ClientUpdate.client_id == Client.id)
            .where(ClientUpdate.round_id == round_id, ClientUpdate.status.in_(OPEN_UPDATES))
            .order_by(Client.name)
        ).all()
        if secure is None
        else [name for _, name in awaited(session, secure)]
    )
    record_event(
        session,
        round_.run_id,
        EventKind.DEADLINE_PASSED,
        f"The deadline of {_name(session.get_one(Round, round_id))} passed; late: "
        f"{', '.join(late)}.",
        round_number=round_.round_number,
        late=list(late),
    )
    return settle_round(session, round_.run_id)


def refuse_update(session: Session, round_: Round, lost: LostClient) -> list[Job]:
    """Takes an update that cannot be aggregated out of its round.

    Returns:
        The aggregation job again, if enough updates are left; else the run has failed.
    """
    refused = session.scalar(
        select(ClientUpdate.id)
        .join(Round, ClientUpdate.round_id == Round.id)
        .where(
            Round.run_id == round_.run_id,
            ClientUpdate.client_id == lost.client_id,
            ClientUpdate.aggregated_in == round_.round_number,
        )
    )
    if refused is None or not change_update(
        session, refused, UpdateStatus.REFUSED, aggregated_in=None, error=lost.sentence
    ):
        return []  # another delivery of the job was first
    left = session.scalar(
        select(func.count())
        .select_from(ClientUpdate)
        .join(Round, ClientUpdate.round_id == Round.id)
        .where(
            Round.run_id == round_.run_id,
            ClientUpdate.aggregated_in == round_.round_number,
            ClientUpdate.status == UpdateStatus.ACCEPTED,
        )
    )
    policy, quorum = _policy(session, round_.run_id), _quorum(session, round_)
    if (left or 0) < quorum:
        fail_run(session, round_.run_id, _out_of_reach(round_, policy, quorum, left or 0, lost))
        return []
    _record_left_out(session, round_, quorum, lost)
    return [CloseRound(round_id=round_.id)]


def busy_clients(session: Session, run_id: UUID) -> set[UUID]:
    """Clients whose update of an earlier round is not used yet: they begin no other meanwhile."""
    return set(
        session.scalars(
            select(ClientUpdate.client_id)
            .join(Round, ClientUpdate.round_id == Round.id)
            .where(Round.run_id == run_id, _unused())
        )
    )


def end_carried_updates(session: Session, run_id: UUID) -> None:
    """Before the delivery: what is still under way is dropped, what came too late is listed."""
    drop_open_updates(session, run_id, "the last training round closed without it")
    unused = select(ClientUpdate.id).join(Round, ClientUpdate.round_id == Round.id)
    rows = session.execute(
        update(ClientUpdate)
        .where(ClientUpdate.id.in_(unused.where(Round.run_id == run_id, _unused())))
        .values(late_at=func.now())
        .returning(ClientUpdate.client_id, ClientUpdate.round_id)
        .execution_options(synchronize_session=False)
    ).all()
    for client_id, round_id in rows:
        round_ = session.get_one(Round, round_id)
        record_event(
            session,
            run_id,
            EventKind.UPDATE_LATE,
            f"{session.get_one(Client, client_id).name} finished round {round_.round_number} "
            "after the last aggregation: its update is not used.",
            client_id=client_id,
            round_number=round_.round_number,
        )


def drop_open_updates(
    session: Session, run_id: UUID, reason: str, client_ids: Sequence[UUID] | None = None
) -> None:
    """Ends everything on which clients of the run are still at work; the run goes on.

    Args:
        session: the run's row is locked in it.
        run_id: of which run.
        reason: for people, part of a sentence.
        client_ids: only theirs; None: of all clients.
    """
    query = (
        select(ClientUpdate.id, Client.id, Client.name, Round.round_number)
        .join(Round, ClientUpdate.round_id == Round.id)
        .join(Client, ClientUpdate.client_id == Client.id)
        .where(Round.run_id == run_id, ClientUpdate.status.in_(OPEN_UPDATES))
        .order_by(ClientUpdate.id)
    )
    if client_ids is not None:
        query = query.where(ClientUpdate.client_id.in_(client_ids))
    rows = session.execute(query).all()
    for update_id, client_id, name, round_number in rows:
        change_update(session, update_id, UpdateStatus.DROPPED, error=reason)
        record_event(
            session,
            run_id,
            EventKind.CLIENT_LEFT_OUT,
            f"{name} was too late for round {round_number}: {reason}.",
            client_id=client_id,
            round_number=round_number,
        )
    _end_attempts(session, [row[0] for row in rows])


def _end_attempts(session: Session, update_ids: Sequence[UUID]) -> None:
    session.execute(
        update(Attempt)
        .where(Attempt.client_update_id.in_(update_ids), Attempt.outcome.is_(None))
        .values(outcome=AttemptOutcome.CANCELLED, ended_at=func.now())
    )


def _unused() -> ColumnElement[bool]:
    return and_(
        Round.kind == RoundKind.TRAIN,
        ClientUpdate.aggregated_in.is_(None),
        ClientUpdate.late_at.is_(None),
        ClientUpdate.status.in_([*OPEN_UPDATES, UpdateStatus.ACCEPTED]),
    )


def _counts_in(round_: Round) -> ColumnElement[bool]:
    """Unused updates of the round itself, and in training those carried over to it."""
    own = ClientUpdate.round_id == round_.id
    if round_.kind is RoundKind.DELIVER:
        return own
    training = select(Round.id).where(Round.run_id == round_.run_id, Round.kind == RoundKind.TRAIN)
    carried = and_(ClientUpdate.round_id.in_(training), ClientUpdate.aggregated_in.is_(None))
    return and_(or_(own, carried), ClientUpdate.late_at.is_(None))


def _arrived(round_: Round) -> ColumnElement[bool]:
    return and_(_counts_in(round_), ClientUpdate.status == UpdateStatus.ACCEPTED)


def _refusing(session: Session, run_id: UUID) -> LostClient | None:
    """One of those that stay out of the run, where that is why too few can come."""
    refusal = session.scalars(
        select(Refusal).where(Refusal.run_id == run_id).order_by(Refusal.id.desc()).limit(1)
    ).one_or_none()
    if refusal is None:
        return None
    sentence = refusal_sentence(refusal.client.name, refusal.reason)
    return LostClient(refusal.client_id, refusal.client.name, sentence)


def refusal_sentence(name: str, reason: str) -> str:
    """What people read: who stays out of the run, and why."""
    return f"{name} does not take part in this run: {reason.rstrip('.')}."


def _tally(session: Session, round_: Round) -> _Tally:
    is_open = ClientUpdate.status.in_(OPEN_UPDATES)
    own = ClientUpdate.round_id == round_.id
    arrived, open_own, open_all = session.execute(
        select(
            func.count().filter(ClientUpdate.status == UpdateStatus.ACCEPTED),
            func.count().filter(is_open, own),
            func.count().filter(is_open),
        ).where(_counts_in(round_))
    ).one()
    return _Tally(arrived, open_own, open_all, _quorum(session, round_))


def _quorum(session: Session, round_: Round) -> int:
    if round_.quorum is not None:
        return round_.quorum
    everybody = session.scalar(
        select(func.count()).select_from(ClientUpdate).where(ClientUpdate.round_id == round_.id)
    )
    return everybody or 0


def _name(round_: Round) -> str:
    if round_.kind is RoundKind.DELIVER:
        return "the delivery"
    if round_.kind is RoundKind.GAUGE:
        return "the agreement on codes"
    return f"round {round_.round_number}"


def _goes_ahead(round_: Round, policy: RoundPolicy, tally: _Tally) -> bool:
    """True where enough are in, whoever is still at work."""
    if round_.kind is RoundKind.DELIVER:
        return False
    buffer_size = policy.buffer_size if round_.kind is RoundKind.TRAIN else None
    if buffer_size is not None and tally.arrived >= buffer_size:
        return True
    return round_.is_overdue and policy.stragglers != "wait"


def _policy(session: Session, run_id: UUID) -> RoundPolicy:
    return RoundPolicy.model_validate(session.get_one(Run, run_id).round_policy)


def _out_of_reach(
    round_: Round, policy: RoundPolicy, quorum: int, possible: int, lost: LostClient | None
) -> str:
    if lost is not None and policy.needs_everybody:
        return lost.sentence
    counted = (
        f"{_name(round_).capitalize()} needs {quorum} {'update' if quorum == 1 else 'updates'}, "
        f"and only {possible} can come."
    )
    return counted if lost is None else f"{lost.sentence} {counted}"


def _record_left_out(session: Session, round_: Round, quorum: int, lost: LostClient) -> None:
    record_event(
        session,
        round_.run_id,
        EventKind.CLIENT_LEFT_OUT,
        f"{lost.sentence} {_name(round_).capitalize()} goes on without {lost.name}: {quorum} "
        f"{'update is' if quorum == 1 else 'updates are'} enough.",
        client_id=lost.client_id,
        round_number=round_.round_number,
    )
