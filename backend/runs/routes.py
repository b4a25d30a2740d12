"""`/federations/{id}/runs` and `/runs`."""

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Query, status
from fastapi.responses import Response

from backend.auth.dependencies import (
    AnyPrincipal,
    Operator,
    Viewer,
    require_role_or_client,
)
from backend.contracts.common import Page
from backend.contracts.enums import Role
from backend.contracts.runs import Adapter, LiveRun, Run, RunCreate
from backend.runs import live, service
from backend.storage.usage import require_room
from backend.web.dependencies import AppSettings, DbSession, Store
from backend.web.downloads import DOWNLOAD_ANSWERS, BlobSender
from backend.web.paging import MAX_JOURNAL_ID, Cursor, Limit
from backend.web.problems import problem_answers

router = APIRouter(tags=["runs"])

After = Annotated[int, Query(ge=0, le=MAX_JOURNAL_ID, description="`cursor` of the answer before")]


@router.post(
    "/federations/{federation_id}/runs",
    status_code=status.HTTP_201_CREATED,
    summary="Prepare a run",
)
def create_run(
    federation_id: UUID, body: RunCreate, principal: Operator, session: DbSession, store: Store
) -> Run:
    """A run of one strategy with one seed; it begins with `POST /runs/{id}/start`."""
    return service.create_run(session, store, federation_id, body, principal)


@router.get("/federations/{federation_id}/runs", summary="A federation's runs")
def list_runs(
    federation_id: UUID,
    _principal: Viewer,
    session: DbSession,
    cursor: Cursor = None,
    limit: Limit = 50,
) -> Page[Run]:
    """All runs of a federation, newest first."""
    return service.list_runs(session, federation_id, cursor, limit)


@router.get("/runs/{run_id}", summary="One run")
def get_run(run_id: UUID, _principal: Viewer, session: DbSession) -> Run:
    """One run with its state."""
    return service.get_run(session, run_id)


@router.post(
    "/runs/{run_id}/start",
    status_code=status.HTTP_202_ACCEPTED,
    summary="Start a run",
    responses=problem_answers(507),
)
def start_run(run_id: UUID, principal: Operator, session: DbSession, settings: AppSettings) -> Run:
    """Queues a created run whose members all have a data set."""
    require_room(session, service.require_run(session, run_id).federation_id, settings)
    return service.start_run(session, run_id, principal)


@router.post("/runs/{run_id}/cancel", status_code=status.HTTP_202_ACCEPTED, summary="Cancel a run")
def cancel_run(run_id: UUID, principal: Operator, session: DbSession) -> Run:
    """Ends a run early; whoever still trains for it stops within seconds."""
    return service.cancel_run(session, run_id, principal)


@router.get("/runs/{run_id}/live", summary="What changed in a run")
def get_live(run_id: UUID, _principal: Viewer, session: DbSession, after: After = 0) -> LiveRun:
    """The state, and what happened after a cursor; poll with `after=cursor`.

    `rounds` has all rounds when `after` is 0, else those that changed since. Progress points are
    thinned to a few hundred a client. A very long backlog comes in several answers, so ask again
    until the cursor stays.
    """
    return live.live_run(session, run_id, after)


@router.get("/runs/{run_id}/adapters", summary="Adapters of a run")
def list_adapters(
    run_id: UUID,
    _principal: Viewer,
    session: DbSession,
    cursor: Cursor = None,
    limit: Limit = 50,
) -> Page[Adapter]:
    """The adapters that can be downloaded, newest first."""
    return service.list_adapters(session, run_id, cursor, limit)


@router.get(
    "/runs/{run_id}/clients/{client_id}/adapter",
    summary="Download an adapter",
    response_class=Response,
    responses=DOWNLOAD_ANSWERS
    | {200: {"content": {"application/zip": {}}, "description": "A PEFT LoRA folder."}},
)
def download_adapter(
    run_id: UUID, client_id: UUID, principal: AnyPrincipal, session: DbSession, sender: BlobSender
) -> Response:
    """A client's own adapter as a zip; for users, and for the client itself.

    A broken download goes on with `Range`; the entity tag is the SHA-256 of the whole.
    """
    require_role_or_client(principal, Role.VIEWER, client_id)
    return sender.send(service.find_adapter(session, run_id, client_id))
