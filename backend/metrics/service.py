"""Measured values of runs: pages, live points, and a table for spreadsheets."""

from collections.abc import Iterator
from uuid import UUID

from sqlalchemy.orm import Session

from backend.contracts.common import Page
from backend.contracts.runs import MetricPoint
from backend.db import models
from backend.db.session import SessionFactory
from backend.metrics import repository
from backend.web.paging import fetch_page
from backend.web.spreadsheet import csv_lines, safe_text

MAX_LIVE_ROWS = 50_000  # looked at for one live answer
MAX_PROGRESS_POINTS = 300  # within rounds, for each client and name in one live answer
CSV_CHUNK_ROWS = 2_000
CSV_COLUMNS = (
    "id",
    "round_number",
    "client_id",
    "client_name",
    "scope",
    "step",
    "name",
    "value",
    "created_at",
)


def list_metrics(
    session: Session, run_id: UUID, cursor: int | None, limit: int
) -> Page[MetricPoint]:
    """A run's measured values, newest first."""
    query = repository.of_run_query(run_id)
    return fetch_page(session, query, models.Metric.id, cursor, limit, _point)


def newest_journal_id(session: Session, run_id: UUID, after: int) -> int:
    """The upper bound of the next live answer; `after` itself when nothing is new."""
    return repository.newest_journal_id(session, run_id, after, MAX_LIVE_ROWS) or after


def metrics_between(session: Session, run_id: UUID, after: int, until: int) -> list[MetricPoint]:
    """A run's values with `after < id <= until`, oldest first, those within rounds thinned."""
    rows = repository.find_thinned(session, run_id, after, until, MAX_PROGRESS_POINTS)
    return [_point(row) for row in rows]


def metrics_csv(session_factory: SessionFactory, run_id: UUID) -> Iterator[str]:
    """All values of a run as CSV, oldest first, in parts; each part is a transaction of its own."""
    yield csv_lines([CSV_COLUMNS])
    after = 0
    while True:
        with session_factory() as session:
            rows = repository.find_chunk(session, run_id, after, CSV_CHUNK_ROWS)
        if not rows:
            return
        yield csv_lines([_csv_row(metric, name) for metric, name in rows])
        after = rows[-1][0].id


def _point(row: models.Metric) -> MetricPoint:
    return MetricPoint(
        id=row.id,
        client_id=row.client_id,
        round_number=row.round_number,
        scope="round" if row.step is None else "progress",
        step=row.step,
        name=row.name,
        value=row.value,
        created_at=row.created_at,
    )


def _csv_row(row: models.Metric, client_name: str | None) -> tuple[object, ...]:
    return (
        row.id,
        row.round_number,
        row.client_id or "",
        safe_text(client_name or ""),
        "round" if row.step is None else "progress",
        "" if row.step is None else row.step,
        row.name.value,
        repr(row.value),
        row.created_at.isoformat(),
    )
