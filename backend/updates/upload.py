"""Receiving shared matrices: refused before they are read where possible, else while they arrive.

They wait in a file without a name, so memory does not grow with their size.
"""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from tempfile import SpooledTemporaryFile
from typing import Annotated, BinaryIO, cast
from uuid import UUID

from fastapi import Depends, Query, Request
from starlette.concurrency import run_in_threadpool

from backend.auth.dependencies import CurrentClient
from backend.auth.principals import ClientPrincipal
from backend.contracts.agent import MAX_FENCE, SHARED_MEDIA_TYPE
from backend.errors import TooLargeError, UnsupportedMediaError
from backend.updates import service
from backend.web.dependencies import AppSettings, DbSession

MEMORY_BYTES = 2**20

FenceQuery = Annotated[
    int, Query(ge=1, le=MAX_FENCE, description="number of the attempt, as the lease gave it")
]


@dataclass(frozen=True, slots=True)
class SharedUpload:
    """A body that has arrived, at its first byte."""

    content: BinaryIO
    size_bytes: int


def require_lease(
    update_id: UUID, fence: FenceQuery, client: CurrentClient, session: DbSession
) -> ClientPrincipal:
    """The client, if its attempt still counts; no connection waits while the body arrives."""
    service.require_held(session, client, update_id, fence)
    session.commit()
    return client


async def read_shared(
    request: Request,
    _client: Annotated[ClientPrincipal, Depends(require_lease)],
    settings: AppSettings,
) -> AsyncIterator[SharedUpload]:
    """The body of the request, after its sender, lease, type and size are checked.

    Raises:
        UnsupportedMediaError: the type is not safetensors.
        TooLargeError: by its header, or as soon as too many bytes have come.
    """
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != SHARED_MEDIA_TYPE:
        raise UnsupportedMediaError(
            f"The Content-Type is {media_type[:100] or 'missing'!r}. Send shared matrices as "
            f"{SHARED_MEDIA_TYPE}."
        )
    limit = settings.max_update_bytes
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length[:20]) > limit:
        raise _too_large(f"{length[:20]} bytes", limit)
    with SpooledTemporaryFile(max_size=MEMORY_BYTES) as spool:
        size_bytes = 0
        async for chunk in request.stream():
            size_bytes += len(chunk)
            if size_bytes > limit:
                raise _too_large("larger", limit)
            await run_in_threadpool(spool.write, chunk)
        spool.seek(0)
        yield SharedUpload(cast(BinaryIO, spool), size_bytes)


Upload = Annotated[SharedUpload, Depends(read_shared, scope="function")]


def _too_large(size: str, limit: int) -> TooLargeError:
    return TooLargeError(
        f"The shared matrices are {size}, the limit is {limit} bytes. Choose a smaller LoRA rank, "
        "or ask an administrator to raise FEDBRAID_MAX_UPDATE_BYTES."
    )
