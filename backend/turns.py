"""Turns: the runs of a comparison go on a few at a time, so that nobody else has to wait for all.

All runs of a started comparison are queued at once, which keeps the data of their clients as they
are. A run whose turn has not come has no job on its way (`enqueued_at` is null). Whoever holds the
lock of the comparison's row gives turns to as many as are free; the sweep does so until none
waits, hence a run that ends in any way, or a process that dies, holds up nobody.
"""

from collections.abc import Sequence
from uuid import UUID

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from backend.contracts.enums import EventKind, RunStatus
from backend.contracts.jobs import Job, OpenRound
from backend.db.models import Comparison, Run
from backend.journal import record_event


def lock_comparison(session: Session, comparison_id: UUID) -> Comparison:
    """The comparison, locked until the transaction ends: nobody else gives turns meanwhile."""
    return session.scalars(
        select(Comparison).where(Comparison.id == comparison_id).with_for_update(key_share=True)
    ).one()


def waiting_comparisons(session: Session) -> Sequence[UUID]:
    """Comparisons of which a run waits for its turn, oldest first."""
    return session.scalars(
        select(Run.comparison_id)
        .where(
            Run.comparison_id.is_not(None),
            Run.status == RunStatus.QUEUED,
            Run.enqueued_at.is_(None),
        )
        .distinct()
        .order_by(Run.comparison_id)
    ).all()  # type: ignore[return-value]  # the condition leaves out null


def take_turns(session: Session, comparison_id: UUID, at_once: int) -> list[Job]:
    """Lets as many waiting runs begin as are free; gives the jobs to send after the commit.

    Seeds come one after the other, each with all arms in their order, so that the first seed can be
    compared early.

    Args:
        session: the transaction; the comparison stays locked until it ends.
        comparison_id: which comparison.
        at_once: how many of its runs may go on together.
    """
    comparison = lock_comparison(session, comparison_id)
    runs = session.scalars(
        select(Run)
        .where(
            Run.comparison_id == comparison_id,
            Run.status.in_([RunStatus.QUEUED, RunStatus.RUNNING]),
        )
        .execution_options(populate_existing=True)
    ).all()
    waiting = _in_order(comparison, runs)
    num_free = at_once - (len(runs) - len(waiting))
    admitted = [run for run in waiting[: max(0, num_free)] if _admit(session, run.id)]
    return [OpenRound(run_id=run.id) for run in admitted]


def waiting_places(session: Session, comparison_id: UUID) -> dict[UUID, int]:
    """The place, from 1, of each run of a comparison that waits for its turn."""
    comparison = session.get_one(Comparison, comparison_id)
    runs = session.scalars(select(Run).where(Run.comparison_id == comparison_id)).all()
    return {run.id: place for place, run in enumerate(_in_order(comparison, runs), start=1)}


def _in_order(comparison: Comparison, runs: Sequence[Run]) -> list[Run]:
    """Those of the runs that wait for their turn, the next one first."""
    arms = {arm["name"]: place for place, arm in enumerate(comparison.arms)}
    seeds = {seed: place for place, seed in enumerate(comparison.seeds)}
    return sorted(
        (run for run in runs if run.status is RunStatus.QUEUED and run.enqueued_at is None),
        key=lambda run: (seeds[run.seed], arms[str(run.arm)]),
    )


def _admit(session: Session, run_id: UUID) -> bool:
    """False: the run was cancelled in this moment; the next sweep gives its turn to another."""
    admitted = session.execute(
        update(Run)
        .where(Run.id == run_id, Run.status == RunStatus.QUEUED)
        .values(enqueued_at=func.now())
        .returning(Run.id)
    ).first()
    if admitted is None:
        return False
    record_event(session, run_id, EventKind.RUN_ADMITTED, "Its turn in the comparison came.")
    return True
