"""`/metrics` and `/runs/{id}/metrics`."""

from typing import Annotated, Literal
from uuid import UUID

from fastapi import APIRouter, Header, Query
from fastapi.responses import StreamingResponse

from backend.auth.dependencies import AnyPrincipal, Viewer
from backend.contracts.common import Page
from backend.contracts.metric_catalogue import MetricCatalogue, metric_catalogue
from backend.contracts.runs import MetricPoint
from backend.metrics import service
from backend.runs.service import require_run
from backend.web.dependencies import DbSession, Sessions
from backend.web.paging import JournalCursor, JournalLimit

router = APIRouter()

Format = Annotated[
    Literal["json", "csv"] | None, Query(description="empty: as the Accept header asks")
]


@router.get("/metrics", tags=["catalogue"], summary="What is measured")
def describe_metrics(_principal: AnyPrincipal) -> MetricCatalogue:
    """Name, unit and meaning of every value that a run or a round's report may hold."""
    return metric_catalogue()


@router.get(
    "/runs/{run_id}/metrics",
    tags=["runs"],
    summary="Measured values of a run",
    response_model=Page[MetricPoint],
    responses={200: {"content": {"text/csv": {}}, "description": "A page, or all as CSV."}},
)
def list_metrics(
    run_id: UUID,
    _principal: Viewer,
    session: DbSession,
    sessions: Sessions,
    cursor: JournalCursor = None,
    limit: JournalLimit = 100,
    format: Format = None,
    accept: Annotated[str, Header()] = "",
) -> Page[MetricPoint] | StreamingResponse:
    """Measured values as JSON pages, newest first, or all of them as CSV, oldest first."""
    require_run(session, run_id)
    if format == "csv" or (format is None and "text/csv" in accept):
        return StreamingResponse(
            service.metrics_csv(sessions, run_id),
            media_type="text/csv",
            headers={"Content-Disposition": f'attachment; filename="metrics-{run_id}.csv"'},
        )
    return service.list_metrics(session, run_id, cursor, limit)
