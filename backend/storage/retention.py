"""Retention: what ended runs give up after a while, so that the garbage collection takes it away.

While a run goes on, every plan, update and private factor may be needed. Once it has ended, its
results are its final state, its adapters, its metrics and its events, which stay as long as the run
does; copies need its settings only. So after `retention_days` the references on plans, shared
matrices and private factors go, except those of the last `retention_rounds` training rounds and of
the delivery behind them. Earlier states need no rule: a run refers to its newest state only.

A failed run may be resumed. It gives up what is used up: updates that an earlier round aggregated,
of which the same client has a later one, and updates that were too late for any round.
"""

from dataclasses import dataclass
from datetime import timedelta
from uuid import UUID

from sqlalchemy import ColumnElement, Select, and_, func, or_, select, union, update
from sqlalchemy.orm import Session, aliased

from backend.contracts.enums import RoundKind, RunStatus, UpdateStatus
from backend.db.models import Blob, ClientUpdate, Federation, Round, Run
from backend.db.session import SessionFactory

BATCH = 1000
_GIVEN_UP = (ClientUpdate.plan_sha256, ClientUpdate.shared_sha256, ClientUpdate.private_sha256)
_ENDED = (RunStatus.COMPLETED, RunStatus.CANCELLED, RunStatus.FAILED)


@dataclass(frozen=True, slots=True)
class RetentionPolicy:
    """What holds for federations without a policy of their own.

    Attributes:
        days: after the end of a run; None: for ever.
        rounds: >= 0, of each run, which keep everything.
    """

    days: float | None
    rounds: int


@dataclass(frozen=True, slots=True)
class Expired:
    """What retention gives up, or gave up.

    Attributes:
        num_runs: runs whose updates are concerned.
        num_updates: client updates whose bytes nobody needs.
        size_bytes: of their blobs; one that something else needs stays.
    """

    num_runs: int
    num_updates: int
    size_bytes: int


def find_expired(session_factory: SessionFactory, policy: RetentionPolicy) -> Expired:
    """What `give_up_expired` would give up now."""
    expired = _expired(policy).subquery()
    columns = (expired.c.plan_sha256, expired.c.shared_sha256, expired.c.private_sha256)
    blobs = union(*(select(column.label("sha256")) for column in columns)).subquery()
    with session_factory() as session:
        num_runs, num_updates = session.execute(
            select(func.count(expired.c.run_id.distinct()), func.count())
        ).one()
        size_bytes = session.scalar(
            select(func.coalesce(func.sum(Blob.size_bytes), 0)).where(
                Blob.sha256.in_(select(blobs.c.sha256))
            )
        )
    return Expired(num_runs, num_updates, int(size_bytes or 0))


def give_up_expired(session_factory: SessionFactory, policy: RetentionPolicy) -> Expired:
    """Removes the references; the garbage collection then removes the bytes.

    It needs no lock: what it takes is needed by no transition that is possible. Several processes
    may do it at once.
    """
    found = find_expired(session_factory, policy)
    while True:
        with session_factory() as session:
            num_updates = _give_up_batch(session, policy)
            session.commit()
        if num_updates < BATCH:
            return found


def _give_up_batch(session: Session, policy: RetentionPolicy) -> int:
    rows = session.execute(_expired(policy).limit(BATCH)).all()
    session.execute(
        update(ClientUpdate)
        .where(ClientUpdate.id.in_([row.id for row in rows]))
        .values(dict.fromkeys(_GIVEN_UP))
        .execution_options(synchronize_session=False)
    )
    session.execute(
        update(Run)
        .where(Run.id.in_({row.run_id for row in rows}))
        .values(cleared_at=func.now())
        .execution_options(synchronize_session=False)
    )
    return len(rows)


def _expired(
    policy: RetentionPolicy,
) -> Select[UUID, UUID, str | None, str | None, str | None]:
    """Client updates that still refer to bytes which nobody needs."""
    days = func.coalesce(Federation.retention_days, policy.days)
    rounds = func.coalesce(Federation.retention_rounds, policy.rounds)
    other = aliased(Round)
    last_round = (
        select(func.max(other.round_number))
        .where(other.run_id == Run.id, other.kind == RoundKind.TRAIN)
        .scalar_subquery()
    )
    return (
        select(ClientUpdate.id, Run.id.label("run_id"), *_GIVEN_UP)
        .join(Round, ClientUpdate.round_id == Round.id)
        .join(Run, Round.run_id == Run.id)
        .join(Federation, Run.federation_id == Federation.id)
        .where(
            Run.status.in_(_ENDED),
            Run.ended_at < func.now() - days * timedelta(days=1),  # false without a number of days
            or_(*(column.is_not(None) for column in _GIVEN_UP)),
            or_(rounds == 0, Round.round_number <= last_round - rounds),
            or_(Run.status != RunStatus.FAILED, _is_used_up()),
        )
    )


def _is_used_up() -> ColumnElement[bool]:
    """True for updates that a failed run does not need, should it be resumed."""
    later, its_round = aliased(ClientUpdate), aliased(Round)
    has_later = (
        select(later.id)
        .join(its_round, later.round_id == its_round.id)
        .where(
            its_round.run_id == Run.id,
            its_round.kind == RoundKind.TRAIN,
            its_round.round_number > Round.round_number,
            later.client_id == ClientUpdate.client_id,
            later.status == UpdateStatus.ACCEPTED,
        )
        .correlate(Run, Round, ClientUpdate)
        .exists()
    )
    return or_(
        ClientUpdate.status == UpdateStatus.DROPPED,
        and_(
            ClientUpdate.status == UpdateStatus.ACCEPTED,
            ClientUpdate.aggregated_in < Run.round_number,
            has_later,
        ),
    )
