"""`/agent`: what a remote client's agent calls, with the client's own credential."""

from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Header, Query, status
from fastapi.responses import Response

from backend.auth.dependencies import CurrentClient
from backend.contracts.agent import (
    PIECE_MEDIA_TYPE,
    SHARED_MEDIA_TYPE,
    AgentFailure,
    AgentRelease,
    AgentResult,
    Heartbeat,
    Lease,
    LeaseRequest,
    ResultReceipt,
    SharedReceipt,
    UploadStart,
    UploadState,
)
from backend.updates import resumable, service
from backend.updates.room import require_room_for
from backend.updates.upload import FenceQuery, Piece, Upload
from backend.web.dependencies import AppSettings, DbSession, Direct, Store
from backend.web.downloads import DOWNLOAD_ANSWERS, BlobSender
from backend.web.problems import problem_answers

router = APIRouter(prefix="/agent", tags=["agent"])

_SHARED_BODY = {
    "required": True,
    "content": {SHARED_MEDIA_TYPE: {"schema": {"type": "string", "format": "binary"}}},
}
_PIECE_BODY = {
    "required": True,
    "content": {PIECE_MEDIA_TYPE: {"schema": {"type": "string", "format": "binary"}}},
}
_PLAN: dict[int | str, dict[str, Any]] = {
    200: {"content": {SHARED_MEDIA_TYPE: {}}, "description": "A plan in safetensors format."}
}


Sha256Query = Annotated[str, Query(pattern=r"^[0-9a-f]{64}$", description="hash of the whole")]
OffsetHeader = Annotated[
    int, Header(alias="Upload-Offset", ge=0, le=2**40, description="first byte of the piece")
]


@router.post("/lease", summary="Ask for work")
def lease(
    body: LeaseRequest, client: CurrentClient, session: DbSession, settings: AppSettings
) -> Lease:
    """The oldest update that waits for this client, now leased to the caller; null: none waits."""
    return service.lease(session, client, body.agent, settings.lease_seconds)


@router.get(
    "/updates/{update_id}/plan",
    summary="Download a plan",
    response_class=Response,
    responses=DOWNLOAD_ANSWERS | _PLAN,
)
def download_plan(
    update_id: UUID, client: CurrentClient, session: DbSession, sender: BlobSender
) -> Response:
    """What the client loads in this round, as its lease described it."""
    return sender.send(service.find_plan(session, client, update_id))


@router.post(
    "/updates/{update_id}/heartbeat",
    status_code=status.HTTP_204_NO_CONTENT,
    summary="Keep a lease",
)
def heartbeat(
    update_id: UUID,
    body: Heartbeat,
    client: CurrentClient,
    session: DbSession,
    settings: AppSettings,
) -> None:
    """Moves the lease forward; 409 `lease_lost` says that the attempt counts no more."""
    service.heartbeat(session, client, update_id, body, settings.lease_seconds)


@router.put(
    "/updates/{update_id}/shared",
    summary="Upload shared matrices",
    responses=problem_answers(415, 507),
    openapi_extra={"requestBody": _SHARED_BODY},
)
def put_shared(
    update_id: UUID,
    fence: FenceQuery,
    upload: Upload,
    client: CurrentClient,
    session: DbSession,
    store: Store,
    settings: AppSettings,
) -> SharedReceipt:
    """All that leaves the client; it counts once the result names its hash."""
    own = service.require_held(session, client, update_id, fence)
    require_room_for(session, own, upload.size_bytes, settings)
    return service.store_shared(
        session, store, client, update_id, fence, upload.content, upload.size_bytes
    )


@router.post(
    "/updates/{update_id}/uploads",
    summary="Begin or resume an upload",
    responses=problem_answers(507),
)
def start_upload(
    update_id: UUID,
    body: UploadStart,
    client: CurrentClient,
    session: DbSession,
    settings: AppSettings,
    direct: Direct,
) -> UploadState:
    """For long shared matrices; the answer says from where on to send.

    With `direct`, the whole may be PUT there instead, without any credential.
    """
    return resumable.start(session, client, update_id, body, settings, direct)


@router.patch(
    "/updates/{update_id}/uploads/content",
    summary="Upload the next piece",
    responses=problem_answers(415),
    openapi_extra={"requestBody": _PIECE_BODY},
)
def add_piece(
    update_id: UUID,
    sha256: Sha256Query,
    offset: OffsetHeader,
    piece: Piece,
    client: CurrentClient,
    session: DbSession,
    store: Store,
) -> UploadState:
    """Whole or not at all; 409 `upload_offset` says that it does not begin where the last ended."""
    return resumable.add_piece(
        session, store, client, update_id, sha256, offset, piece.content, piece.size_bytes
    )


@router.post("/updates/{update_id}/uploads/complete", summary="Complete an upload")
def complete_upload(
    update_id: UUID,
    sha256: Sha256Query,
    fence: FenceQuery,
    client: CurrentClient,
    session: DbSession,
    store: Store,
    direct: Direct,
) -> SharedReceipt:
    """Checks size, hash and form of what came, in pieces or directly; again: the same answer."""
    return resumable.complete(session, store, client, update_id, fence, sha256, direct)


@router.post("/updates/{update_id}/result", summary="Hand in a result")
def finish(
    update_id: UUID, body: AgentResult, client: CurrentClient, session: DbSession
) -> ResultReceipt:
    """Ends the attempt; sending the same result again changes nothing."""
    return service.finish(session, client, update_id, body)


@router.post(
    "/updates/{update_id}/failure",
    status_code=status.HTTP_204_NO_CONTENT,
    summary="Report a failure",
)
def fail(update_id: UUID, body: AgentFailure, client: CurrentClient, session: DbSession) -> None:
    """Ends the attempt and the run, with the client's reason."""
    service.fail(session, client, update_id, body.fence, body.reason)


@router.post(
    "/updates/{update_id}/release",
    status_code=status.HTTP_204_NO_CONTENT,
    summary="Give work back",
)
def release(update_id: UUID, body: AgentRelease, client: CurrentClient, session: DbSession) -> None:
    """Lets the update wait again, because the agent was told to stop."""
    service.release(session, client, update_id, body.fence)
