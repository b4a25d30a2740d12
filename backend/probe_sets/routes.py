"""`/federations/{id}/probe-set`."""

from uuid import UUID

from fastapi import APIRouter, status
from fastapi.responses import Response

from backend.auth.dependencies import Operator, Viewer
from backend.contracts.probe_sets import JSON_LINES, MEDIA_TYPES, PLAIN_TEXT, ProbeSet
from backend.probe_sets import service
from backend.probe_sets.upload import Upload
from backend.web.dependencies import AppSettings, DbSession, Store
from backend.web.downloads import DOWNLOAD_ANSWERS, BlobSender
from backend.web.problems import problem_answers

router = APIRouter(prefix="/federations/{federation_id}/probe-set", tags=["federations"])

_EXAMPLES = {
    JSON_LINES: '{"text": "The film was slow at first."}\n{"text": "Where is the station?"}\n',
    PLAIN_TEXT: "The film was slow at first.\nWhere is the station?\n",
}
_BODY = {
    "required": True,
    "content": {
        media_type: {
            "schema": {"type": "string", "format": "binary"},
            "example": _EXAMPLES.get(media_type, _EXAMPLES[JSON_LINES]),
        }
        for media_type in MEDIA_TYPES
    },
}


@router.get("", summary="A federation's probe texts")
def get_probe_set(
    federation_id: UUID, _principal: Viewer, session: DbSession, store: Store
) -> ProbeSet:
    """Where the texts come from, how many there are, and the first ones."""
    return service.describe(session, store, federation_id)


@router.put(
    "",
    summary="Replace a federation's probe texts",
    responses=problem_answers(415, 507),
    openapi_extra={"requestBody": _BODY},
)
def put_probe_set(
    federation_id: UUID,
    upload: Upload,
    principal: Operator,
    session: DbSession,
    store: Store,
    settings: AppSettings,
) -> ProbeSet:
    """50 to 2,000 different texts of at most 500 characters, as JSON lines or one per line.

    All clients of the federation receive them: send nothing confidential. Runs that exist keep the
    texts with which they were made. A wrong text is named by its line, and then nothing changes.
    """
    return service.replace(session, store, federation_id, upload, settings, principal)


@router.get(
    "/content",
    summary="Download a federation's probe texts",
    response_class=Response,
    responses=DOWNLOAD_ANSWERS
    | {200: {"content": {JSON_LINES: {}}, "description": 'One {"text": "..."} per line.'}},
)
def download_probe_set(
    federation_id: UUID, _principal: Viewer, session: DbSession, sender: BlobSender
) -> Response:
    """The texts that were uploaded; 404 while the federation has the built-in ones."""
    return sender.send(service.find_download(session, federation_id))


@router.delete(
    "", status_code=status.HTTP_204_NO_CONTENT, summary="Go back to the built-in probe texts"
)
def delete_probe_set(federation_id: UUID, principal: Operator, session: DbSession) -> None:
    """For runs that are made from now on; 404 while the federation has the built-in ones."""
    service.remove(session, federation_id, principal)
