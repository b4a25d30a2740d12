"""`/federations/{id}/comparisons` and `/comparisons`."""

from uuid import UUID

from fastapi import APIRouter, status
from fastapi.responses import PlainTextResponse

from backend.auth.dependencies import Operator, Viewer
from backend.comparisons import export, results, service
from backend.contracts.common import Page
from backend.contracts.comparisons import Comparison, ComparisonCreate, ComparisonResults
from backend.contracts.runs import Event, Run
from backend.storage.usage import require_room
from backend.web.dependencies import AppSettings, DbSession, Store
from backend.web.paging import Cursor, JournalCursor, JournalLimit, Limit
from backend.web.problems import problem_answers

router = APIRouter(tags=["comparisons"])


@router.post(
    "/federations/{federation_id}/comparisons",
    status_code=status.HTTP_201_CREATED,
    summary="Prepare a comparison",
)
def create_comparison(
    federation_id: UUID,
    body: ComparisonCreate,
    principal: Operator,
    session: DbSession,
    store: Store,
) -> Comparison:
    """Several strategies times several seeds; begins with `POST /comparisons/{id}/start`.

    Clients, data, rounds and local training are the same for all runs.
    """
    return service.create_comparison(session, store, federation_id, body, principal)


@router.get("/federations/{federation_id}/comparisons", summary="A federation's comparisons")
def list_comparisons(
    federation_id: UUID,
    _principal: Viewer,
    session: DbSession,
    cursor: Cursor = None,
    limit: Limit = 50,
) -> Page[Comparison]:
    """All comparisons of a federation, newest first."""
    return service.list_comparisons(session, federation_id, cursor, limit)


@router.get("/comparisons/{comparison_id}", summary="One comparison")
def get_comparison(comparison_id: UUID, _principal: Viewer, session: DbSession) -> Comparison:
    """One comparison with its state."""
    return service.get_comparison(session, comparison_id)


@router.post(
    "/comparisons/{comparison_id}/start",
    status_code=status.HTTP_202_ACCEPTED,
    summary="Start a comparison",
    responses=problem_answers(507),
)
def start_comparison(
    comparison_id: UUID, principal: Operator, session: DbSession, settings: AppSettings
) -> Comparison:
    """Queues all runs; a few go on at once, so that other federations need not wait for all."""
    comparison = service.require_comparison(session, comparison_id)
    require_room(session, comparison.federation_id, settings)
    return service.start_comparison(
        session, comparison_id, principal, settings.comparison_runs_at_once
    )


@router.post(
    "/comparisons/{comparison_id}/cancel",
    status_code=status.HTTP_202_ACCEPTED,
    summary="Cancel a comparison",
)
def cancel_comparison(comparison_id: UUID, principal: Operator, session: DbSession) -> Comparison:
    """Cancels every run that has not ended; what others have found stays."""
    return service.cancel_comparison(session, comparison_id, principal)


@router.get("/comparisons/{comparison_id}/runs", summary="Runs of a comparison")
def list_runs(
    comparison_id: UUID,
    _principal: Viewer,
    session: DbSession,
    cursor: Cursor = None,
    limit: Limit = 50,
) -> Page[Run]:
    """The runs, one for each arm and seed, newest first."""
    return service.list_runs(session, comparison_id, cursor, limit)


@router.get("/comparisons/{comparison_id}/events", summary="Events of a comparison")
def list_events(
    comparison_id: UUID,
    _principal: Viewer,
    session: DbSession,
    cursor: JournalCursor = None,
    limit: JournalLimit = 100,
) -> Page[Event]:
    """What happened in all runs of a comparison, newest first."""
    return service.list_events(session, comparison_id, cursor, limit)


@router.get("/comparisons/{comparison_id}/results", summary="What a comparison has found")
def get_results(comparison_id: UUID, _principal: Viewer, session: DbSession) -> ComparisonResults:
    """Mean and spread over seeds, paired differences, verdicts and Pareto fronts, so far.

    Only completed runs count; `runs` says which failed and why.
    """
    return results.get_results(session, comparison_id)


@router.get(
    "/comparisons/{comparison_id}/results.csv",
    summary="All figures of a comparison as CSV",
    response_class=PlainTextResponse,
    responses={200: {"content": {"text/csv": {}}}},
)
def get_csv(comparison_id: UUID, _principal: Viewer, session: DbSession) -> PlainTextResponse:
    """One line for each arm, seed and client, runs without a result included."""
    rows = results.get_rows(session, comparison_id)
    return _file(export.csv_table(rows), f"comparison-{comparison_id}.csv", "text/csv")


@router.get(
    "/comparisons/{comparison_id}/results.md",
    summary="A report of a comparison as Markdown",
    response_class=PlainTextResponse,
    responses={200: {"content": {"text/markdown": {}}}},
)
def get_markdown(comparison_id: UUID, _principal: Viewer, session: DbSession) -> PlainTextResponse:
    """Tables of accuracies and costs, the verdicts, and what failed."""
    found = results.get_results(session, comparison_id)
    return _file(export.markdown(found), f"comparison-{comparison_id}.md", "text/markdown")


def _file(content: str, name: str, media_type: str) -> PlainTextResponse:
    return PlainTextResponse(
        content,
        media_type=media_type,
        headers={"Content-Disposition": f'attachment; filename="{name}"'},
    )
