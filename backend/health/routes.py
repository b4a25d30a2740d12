"""`/healthz`, `/readyz` and `/metrics`, for whoever runs the platform; they need no token."""

from typing import cast

from fastapi import APIRouter, Request, Response, status

from backend.health.service import check_services
from backend.web.dependencies import AppSettings, DbSession, Sessions, Store
from backend.web.prometheus import RequestMetrics

router = APIRouter(tags=["health"])


@router.get("/healthz", summary="Is the process alive?")
def healthz() -> dict[str, str]:
    """Answers as long as the process does; checks nothing else."""
    return {"status": "ok"}


@router.get(
    "/readyz",
    summary="Is everything there?",
    responses={503: {"description": "A service is away."}},
)
def readyz(
    response: Response, sessions: Sessions, store: Store, settings: AppSettings
) -> dict[str, bool]:
    """Which of database, Redis and blob store answer; 503 unless all do."""
    services = check_services(sessions, store, settings)
    if not all(services.values()):
        response.status_code = status.HTTP_503_SERVICE_UNAVAILABLE
    return services


@router.get("/metrics", summary="Counters for Prometheus", response_class=Response)
def metrics(request: Request, session: DbSession) -> Response:
    """Requests, and states of runs and client updates, in the text format of Prometheus."""
    counters = cast(RequestMetrics, request.app.state.request_metrics)
    return Response(counters.render(session), media_type="text/plain; version=0.0.4")
