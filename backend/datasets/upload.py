"""Receiving a data set: refused before it is read where possible, else while it arrives."""

from typing import Annotated
from uuid import UUID

from fastapi import Depends, Request

from backend.auth.dependencies import AnyPrincipal, require_role_or_client
from backend.contracts.enums import Role
from backend.errors import TooLargeError, UnsupportedMediaError
from backend.web.dependencies import AppSettings

MEDIA_TYPES = ("application/x-ndjson", "application/jsonl", "application/zip")


async def read_upload(
    client_id: UUID, request: Request, principal: AnyPrincipal, settings: AppSettings
) -> bytes:
    """The body of the request, after its sender, type and size are checked.

    Raises:
        ForbiddenError: neither an operator nor the client itself.
        UnsupportedMediaError: the type is neither JSON lines nor zip.
        TooLargeError: by its header, or as soon as too many bytes have come.
    """
    require_role_or_client(principal, Role.OPERATOR, client_id)
    _check_media_type(request.headers.get("content-type", ""))
    limit = settings.max_dataset_bytes
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length[:20]) > limit:
        raise _too_large(f"{length[:20]} bytes", limit)
    content = bytearray()
    async for chunk in request.stream():
        content += chunk
        if len(content) > limit:
            raise _too_large("larger", limit)
    return bytes(content)


Upload = Annotated[bytes, Depends(read_upload)]


def _check_media_type(header: str) -> None:
    media_type = header.partition(";")[0].strip().lower()
    if media_type not in MEDIA_TYPES:
        raise UnsupportedMediaError(
            f"The Content-Type is {media_type[:100] or 'missing'!r}. Send one JSON object per "
            f"line as {' or '.join(MEDIA_TYPES[:2])}, or pictures as {MEDIA_TYPES[2]}."
        )


def _too_large(size: str, limit: int) -> TooLargeError:
    return TooLargeError(
        f"The data set is {size}, the limit is {limit} bytes. Upload less, or ask an "
        "administrator to raise FEDBRAID_MAX_DATASET_BYTES."
    )
