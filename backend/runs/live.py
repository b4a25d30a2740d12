"""The live state of a run: what changed since a cursor, for a page that asks every second."""

from collections import defaultdict
from uuid import UUID

from sqlalchemy.orm import Session

from backend.contracts.enums import RoundStatus
from backend.contracts.runs import ClientUpdate, LiveRun, Round, SecureProgress
from backend.db import models
from backend.events.service import events_between
from backend.metrics.service import metrics_between, newest_journal_id
from backend.refusals.service import list_of_run
from backend.runs import repository
from backend.runs.description import describe_run
from backend.runs.service import require_run
from backend.secure_steps import awaited, find_secure, num_done


def live_run(session: Session, run_id: UUID, after: int) -> LiveRun:
    """The run's state with the events and metrics that follow a cursor.

    The state is read first: a run that is shown as ended then has its last event in the same
    answer. All rows up to the upper bound are visible, because journal numbers are given out in
    the order of commits.

    Args:
        session: where to read.
        run_id: which run.
        after: the cursor of the previous answer; 0 gives everything.

    Raises:
        NotFoundError: no such run.
    """
    run = describe_run(session, require_run(session, run_id))
    cursor = newest_journal_id(session, run_id, after)
    events = events_between(session, run_id, after, cursor)
    metrics = metrics_between(session, run_id, after, cursor)
    touched = [event.round_number for event in events if event.round_number is not None]
    touched += [point.round_number for point in metrics]
    from_round = min([run.round_number, *touched]) if after else 0
    return LiveRun(
        run=run,
        rounds=_rounds(session, run_id, from_round),
        metrics=metrics,
        events=events,
        refusals=list_of_run(session, run_id),
        cursor=cursor,
    )


def _rounds(session: Session, run_id: UUID, from_round: int) -> list[Round]:
    rows = repository.find_rounds(session, run_id, from_round)
    updates: dict[UUID, list[ClientUpdate]] = defaultdict(list)
    for update in repository.find_updates(session, [row.id for row in rows]):
        updates[update.round_id].append(_client_update(update))
    return [
        Round(
            round_number=row.round_number,
            kind=row.kind,
            status=row.status,
            opened_at=row.opened_at,
            closed_at=row.closed_at,
            quorum=row.quorum,
            deadline_at=row.deadline_at,
            report=row.report,
            secure=_secure(session, row) if row.status is RoundStatus.OPEN else None,
            client_updates=updates[row.id],
        )
        for row in rows
    ]


def _secure(session: Session, round_: models.Round) -> SecureProgress | None:
    secure = find_secure(session, round_.id)
    if secure is None:
        return None
    missing = [name for _, name in awaited(session, secure)]
    done = num_done(session, secure)
    return SecureProgress(
        step=secure.step,
        session=secure.number,
        threshold=secure.threshold,
        num_done=done,
        num_expected=done + len(missing),
        waiting_for=missing,
    )


def _client_update(update: models.ClientUpdate) -> ClientUpdate:
    return ClientUpdate(
        id=update.id,
        client_id=update.client_id,
        client_name=update.client.name,
        status=update.status,
        num_attempts=update.fence,
        stage=update.stage,
        step=update.step,
        num_steps=update.num_steps,
        error=update.error,
        started_at=update.started_at,
        ended_at=update.ended_at,
        aggregated_in=update.aggregated_in,
        late_at=update.late_at,
        key_fingerprint=update.key_fingerprint,
    )
