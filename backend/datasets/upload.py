"""Receiving a data set: refused before it is read where possible, else while it arrives."""

from collections.abc import AsyncIterator
from typing import Annotated
from uuid import UUID

from fastapi import Depends, Request

from backend.auth.dependencies import AnyPrincipal, require_role_or_client
from backend.contracts.enums import Role
from backend.errors import TooLargeError
from backend.web.dependencies import AppSettings
from backend.web.uploads import ReceivedBody, receive, require_media_type

MEDIA_TYPES = ("application/x-ndjson", "application/jsonl", "application/zip")


async def read_upload(
    client_id: UUID, request: Request, principal: AnyPrincipal, settings: AppSettings
) -> AsyncIterator[ReceivedBody]:
    """The body of the request, after its sender, type and size are checked.

    Raises:
        ForbiddenError: neither an operator nor the client itself.
        UnsupportedMediaError: the type is neither JSON lines nor zip.
        TooLargeError: by its header, or as soon as too many bytes have come.
    """
    require_role_or_client(principal, Role.OPERATOR, client_id)
    require_media_type(
        request,
        MEDIA_TYPES,
        f"Send one JSON object per line as {' or '.join(MEDIA_TYPES[:2])}, or pictures as "
        f"{MEDIA_TYPES[2]}.",
    )
    limit = settings.max_dataset_bytes
    async with receive(request, limit, lambda size: _too_large(size, limit)) as body:
        yield body


Upload = Annotated[ReceivedBody, Depends(read_upload, scope="function")]


def _too_large(size: str, limit: int) -> TooLargeError:
    return TooLargeError(
        f"The data set is {size}, the limit is {limit} bytes. Upload less, or ask an "
        "administrator to raise FEDBRAID_MAX_DATASET_BYTES."
    )
