"""Receiving shared matrices: refused before they are read where possible, else while they arrive.

They wait in a file without a name, so memory does not grow with their size.
"""

from collections.abc import AsyncIterator
from typing import Annotated
from uuid import UUID

from fastapi import Depends, Query, Request

from backend.auth.dependencies import CurrentClient
from backend.auth.principals import ClientPrincipal
from backend.contracts.agent import MAX_FENCE, PIECE_BYTES, PIECE_MEDIA_TYPE, SHARED_MEDIA_TYPE
from backend.errors import TooLargeError
from backend.updates import service
from backend.web.dependencies import AppSettings, DbSession
from backend.web.uploads import ReceivedBody, receive, require_media_type

FenceQuery = Annotated[
    int, Query(ge=1, le=MAX_FENCE, description="number of the attempt, as the lease gave it")
]


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
) -> AsyncIterator[ReceivedBody]:
    """The body of the request, after its sender, lease, type and size are checked.

    Raises:
        UnsupportedMediaError: the type is not safetensors.
        TooLargeError: by its header, or as soon as too many bytes have come.
    """
    require_media_type(
        request, (SHARED_MEDIA_TYPE,), f"Send shared matrices as {SHARED_MEDIA_TYPE}."
    )
    limit = settings.max_update_bytes
    async with receive(request, limit, lambda size: _too_large(size, limit)) as body:
        yield body


async def read_piece(
    request: Request,
    _client: Annotated[ClientPrincipal, Depends(require_lease)],
) -> AsyncIterator[ReceivedBody]:
    """One piece of a longer upload, after its sender, lease, type and size are checked.

    Raises:
        UnsupportedMediaError: the type is not that of a piece.
        TooLargeError: longer than a piece may be.
    """
    require_media_type(request, (PIECE_MEDIA_TYPE,), f"Send pieces as {PIECE_MEDIA_TYPE}.")
    async with receive(request, PIECE_BYTES, _piece_too_large) as body:
        yield body


Piece = Annotated[ReceivedBody, Depends(read_piece, scope="function")]
Upload = Annotated[ReceivedBody, Depends(read_shared, scope="function")]


def _piece_too_large(size: str) -> TooLargeError:
    return TooLargeError(
        f"The piece is {size}, the limit is {PIECE_BYTES} bytes. Send more, shorter pieces."
    )


def _too_large(size: str, limit: int) -> TooLargeError:
    return TooLargeError(
        f"The shared matrices are {size}, the limit is {limit} bytes. Choose a smaller LoRA rank, "
        "or ask an administrator to raise FEDBRAID_MAX_UPDATE_BYTES."
    )
