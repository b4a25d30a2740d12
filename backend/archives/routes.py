"""`/federations/{id}/archive` and `/federations/import`."""

from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from typing import Annotated, Any
from urllib.parse import quote
from uuid import UUID

from fastapi import APIRouter, Depends, Request, status
from fastapi.responses import StreamingResponse

from backend.archives.exporting import Snapshot, snapshot, stream_archive
from backend.archives.importing import import_archive
from backend.audit import record_audit
from backend.auth.dependencies import Administrator
from backend.auth.principals import UserPrincipal
from backend.contracts.archives import ARCHIVE_MEDIA_TYPE, ImportedFederation
from backend.errors import TooLargeError
from backend.storage import BlobStore
from backend.web.dependencies import AppSettings, DbSession, Sessions, Store
from backend.web.problems import problem_answers
from backend.web.uploads import ReceivedBody, receive, require_media_type

router = APIRouter(prefix="/federations", tags=["federations"])

_ARCHIVE: dict[int | str, dict[str, Any]] = {
    200: {"content": {ARCHIVE_MEDIA_TYPE: {}}, "description": "A zip of rows and blobs."}
}
_BODY = {
    "required": True,
    "content": {ARCHIVE_MEDIA_TYPE: {"schema": {"type": "string", "format": "binary"}}},
}


def idle_administrator(principal: Administrator, session: DbSession) -> UserPrincipal:
    """The administrator; no connection waits while long bodies come and go."""
    session.commit()
    return principal


IdleAdministrator = Annotated[UserPrincipal, Depends(idle_administrator)]


async def read_archive(
    request: Request, _principal: IdleAdministrator, settings: AppSettings
) -> AsyncIterator[ReceivedBody]:
    """The body of the request, after its sender, type and size are checked.

    Raises:
        UnsupportedMediaError: the type is not zip.
        TooLargeError: by its header, or as soon as too many bytes have come.
    """
    require_media_type(request, (ARCHIVE_MEDIA_TYPE,), f"Send an archive as {ARCHIVE_MEDIA_TYPE}.")
    limit = settings.max_archive_bytes
    async with receive(request, limit, lambda size: _too_large(size, limit)) as body:
        yield body


Upload = Annotated[ReceivedBody, Depends(read_archive, scope="function")]


@router.get(
    "/{federation_id}/archive",
    summary="Export a federation",
    response_class=StreamingResponse,
    responses=_ARCHIVE,
)
def export_federation(
    federation_id: UUID, principal: IdleAdministrator, sessions: Sessions, store: Store
) -> StreamingResponse:
    """Everything of a federation as one zip, for `POST /federations/import`.

    Clients with their uploaded data, runs, rounds, events, metrics, states, updates, adapters; no
    users, no credentials and no keys.
    """
    with ExitStack() as files:
        taken = files.enter_context(snapshot(sessions, federation_id))
        with sessions() as session:
            record_audit(
                session, principal, "federation.export", federation_id, name=taken.federation
            )
            session.commit()
        kept = files.pop_all()
    name = quote(f"{taken.federation}.zip", safe="")
    return StreamingResponse(
        _stream(taken, store, kept),
        media_type=ARCHIVE_MEDIA_TYPE,
        headers={"Content-Disposition": f"attachment; filename*=UTF-8''{name}"},
    )


@router.post(
    "/import",
    status_code=status.HTTP_201_CREATED,
    summary="Import a federation",
    responses=problem_answers(415),
    openapi_extra={"requestBody": _BODY},
)
def import_federation(
    upload: Upload,
    principal: IdleAdministrator,
    sessions: Sessions,
    store: Store,
    settings: AppSettings,
) -> ImportedFederation:
    """Makes a federation of an archive: everything, or nothing where something is wrong with it.

    Its ids stay, unless something of it is here already: then it is a copy with new ids. Names that
    are taken get a number. Each client needs a new credential.
    """
    return import_archive(sessions, store, settings, upload.content, principal, principal.id)


def _stream(taken: Snapshot, store: BlobStore, files: ExitStack) -> Iterator[bytes]:
    with files:
        yield from stream_archive(taken, store)


def _too_large(size: str, limit: int) -> TooLargeError:
    return TooLargeError(
        f"The archive is {size}, the limit is {limit} bytes. Use `fedbraid import-federation` on "
        "the machine of the platform, or raise FEDBRAID_MAX_ARCHIVE_BYTES."
    )
