"""The periodic sweep: finds work whose worker or job was lost, and sends it again.

It keeps the promise that every run reaches a terminal state whatever dies: each state that waits
for somebody has a time after which the sweep asks again. A job sent once too often does nothing.
"""

import logging
import threading
import time
from datetime import timedelta

from sqlalchemy import ColumnElement, func, or_, select
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import InstrumentedAttribute, Session

from backend.barrier import notice_deadline
from backend.contracts.enums import Execution, RoundStatus, RunStatus, UpdateStatus
from backend.contracts.jobs import CloseRound, Job, OpenRound, RunClientUpdate
from backend.db.models import Client, ClientUpdate, Round, Run
from backend.db.session import SessionFactory, create_database_engine, create_session_factory
from backend.jobs import commit_and_enqueue
from backend.leases import abandon, expire
from backend.lifecycle import fail_run, lock_run
from backend.secure_steps import find_secure, silent_rounds, too_few_told
from backend.settings import Settings
from backend.storage import BlobStoreUnavailableError, open_blob_store
from backend.storage.garbage import collect_garbage
from backend.storage.retention import RetentionPolicy, give_up_expired
from backend.turns import take_turns, waiting_comparisons

logger = logging.getLogger(__name__)

FIRST_COLLECTION_SECONDS = 60.0  # after the start, when programs are busy enough


def sweep_once(session_factory: SessionFactory, settings: Settings) -> int:
    """One pass; gives the number of jobs sent."""
    patience = timedelta(seconds=2 * settings.lease_seconds)
    with session_factory() as session:
        expired = session.scalars(
            select(ClientUpdate.id).where(
                ClientUpdate.status == UpdateStatus.TRAINING,
                ClientUpdate.lease_expires_at < func.now(),
            )
        ).all()
    sent = 0
    for client_update_id in expired:  # one transaction each: none waits for another's run
        with session_factory() as session:
            jobs = expire(session, client_update_id, settings.max_attempts)
            commit_and_enqueue(session, *jobs)
            sent += len(jobs)
    sent += _end_abandoned(session_factory, settings.remote_wait_hours)
    sent += _close_overdue(session_factory)
    _end_closed_sums(session_factory, settings.remote_wait_hours)
    with session_factory() as session:
        comparisons = waiting_comparisons(session)
    for comparison_id in comparisons:
        with session_factory() as session:
            turns = take_turns(session, comparison_id, settings.comparison_runs_at_once)
            commit_and_enqueue(session, *turns)
    with session_factory() as session:
        jobs = [
            *_lost_client_updates(session, patience),
            *_lost_aggregations(session, patience),
            *_lost_openings(session, patience),
        ]
        commit_and_enqueue(session, *jobs)
    return sent + len(jobs)


def run_forever(settings: Settings, stop: threading.Event) -> None:
    """Sweeps every `sweep_interval_seconds` until `stop` is set; survives a database that is away.

    Raises:
        ValueError: no database is configured.
    """
    if settings.database_url is None:
        raise ValueError("DATABASE_URL is not set; start through `fedbraid up` or set it")
    engine = create_database_engine(settings.database_url.get_secret_value())
    session_factory = create_session_factory(engine)
    next_collection = time.monotonic() + FIRST_COLLECTION_SECONDS
    while not stop.is_set():
        try:
            if time.monotonic() >= next_collection:
                next_collection = time.monotonic() + settings.garbage_interval_hours * 3600
                _collect_garbage(session_factory, settings)
            sent = sweep_once(session_factory, settings)
            if sent:
                logger.info("sent %d lost jobs again", sent)
        except OperationalError as error:
            logger.warning("the database is away, trying again: %s", error.orig)
        stop.wait(settings.sweep_interval_seconds)
    engine.dispose()


def _collect_garbage(session_factory: SessionFactory, settings: Settings) -> None:
    if settings.blob_url is None:
        return
    policy = RetentionPolicy(settings.retention_days, settings.retention_rounds)
    expired = give_up_expired(session_factory, policy)
    if expired.num_updates:
        logger.info("retention: %s", expired)
    try:
        store = open_blob_store(settings.blob_url)
        grace = timedelta(hours=settings.garbage_grace_hours)
        garbage = collect_garbage(session_factory, store, grace)
    except BlobStoreUnavailableError as error:
        logger.warning("no garbage collection: %s", error)
        return
    logger.info("garbage collection: %s", garbage)


def _is_due(enqueued_at: InstrumentedAttribute[object], patience: timedelta) -> ColumnElement[bool]:
    return or_(enqueued_at.is_(None), enqueued_at < func.now() - patience)


def _lost_client_updates(session: Session, patience: timedelta) -> list[Job]:
    rows = session.scalars(
        select(ClientUpdate)
        .join(Client, ClientUpdate.client_id == Client.id)
        .join(Round, ClientUpdate.round_id == Round.id)
        .join(Run, Round.run_id == Run.id)
        .where(
            Run.status == RunStatus.RUNNING,
            ClientUpdate.status == UpdateStatus.PENDING,
            Client.execution == Execution.MANAGED,
            _is_due(ClientUpdate.enqueued_at, patience),
        )
        .with_for_update(of=ClientUpdate, skip_locked=True, key_share=True)
    ).all()
    for row in rows:
        row.enqueued_at = func.now()
    return [RunClientUpdate(client_update_id=row.id) for row in rows]


def _end_abandoned(session_factory: SessionFactory, hours: float) -> int:
    """Gives up updates that wait for an agent that does not come, each by itself."""
    with session_factory() as session:
        abandoned = session.scalars(
            select(ClientUpdate.id)
            .join(Client, ClientUpdate.client_id == Client.id)
            .join(Round, ClientUpdate.round_id == Round.id)
            .join(Run, Round.run_id == Run.id)
            .where(
                Run.status == RunStatus.RUNNING,
                ClientUpdate.status == UpdateStatus.PENDING,
                Client.execution == Execution.REMOTE,
                ClientUpdate.enqueued_at < func.now() - timedelta(hours=hours),
            )
        ).all()
    sent = 0
    for client_update_id in abandoned:
        with session_factory() as session:
            jobs = abandon(session, client_update_id, hours)
            commit_and_enqueue(session, *jobs)
            sent += len(jobs)
    return sent


def _end_closed_sums(session_factory: SessionFactory, hours: float) -> None:
    """Gives up sums of secure rounds for whose shares no agent came."""
    with session_factory() as session:
        silent = silent_rounds(session, hours)
    for round_id, run_id in silent:
        with session_factory() as session:
            lock_run(session, run_id)
            round_, secure = session.get_one(Round, round_id), find_secure(session, round_id)
            if secure is not None and round_.status is RoundStatus.OPEN:
                fail_run(session, run_id, too_few_told(session, round_, secure))
            session.commit()


def _close_overdue(session_factory: SessionFactory) -> int:
    """Looks at the deadlines of rounds, each by itself; the database's clock decides."""
    with session_factory() as session:
        overdue = session.execute(
            select(Round.id, Round.run_id)
            .join(Run, Round.run_id == Run.id)
            .where(
                Run.status == RunStatus.RUNNING,
                Round.status == RoundStatus.OPEN,
                Round.deadline_at < func.now(),
                ~Round.is_overdue,
            )
        ).all()
    sent = 0
    for round_id, run_id in overdue:
        with session_factory() as session:
            lock_run(session, run_id)
            jobs = notice_deadline(session, round_id)
            commit_and_enqueue(session, *jobs)
            sent += len(jobs)
    return sent


def _lost_aggregations(session: Session, patience: timedelta) -> list[Job]:
    rows = session.scalars(
        select(Round)
        .where(Round.status == RoundStatus.AGGREGATING, _is_due(Round.enqueued_at, patience))
        .with_for_update(skip_locked=True, key_share=True)
    ).all()
    for row in rows:
        row.enqueued_at = func.now()
    return [CloseRound(round_id=row.id) for row in rows]


def _lost_openings(session: Session, patience: timedelta) -> list[Job]:
    busy = select(Round.id).where(
        Round.run_id == Run.id, Round.status.in_([RoundStatus.OPEN, RoundStatus.AGGREGATING])
    )
    rows = session.scalars(
        select(Run)
        .where(
            Run.status.in_([RunStatus.QUEUED, RunStatus.RUNNING]),
            ~busy.exists(),
            or_(Run.comparison_id.is_(None), Run.enqueued_at.is_not(None)),  # not its turn yet
            _is_due(Run.enqueued_at, patience),
        )
        .with_for_update(skip_locked=True, key_share=True)
    ).all()
    for row in rows:
        row.enqueued_at = func.now()
    return [OpenRound(run_id=row.id) for row in rows]
