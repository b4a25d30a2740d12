"""Receiving probe texts: refused before they are read where possible, else while they arrive."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Annotated, BinaryIO

from fastapi import Depends, Request

from backend.auth.dependencies import Operator
from backend.contracts.probe_sets import JSON_LINES, MAX_BODY_BYTES, MEDIA_TYPES, PLAIN_TEXT
from backend.errors import TooLargeError
from backend.web.uploads import receive, require_media_type


@dataclass(frozen=True, slots=True)
class ReceivedTexts:
    """A file that has arrived, at its first byte, and what it says it is."""

    content: BinaryIO
    media_type: str


async def read_texts(request: Request, _principal: Operator) -> AsyncIterator[ReceivedTexts]:
    """The body of the request, after its sender, type and size are checked.

    Raises:
        ForbiddenError: no operator.
        UnsupportedMediaError: the type is neither JSON lines nor plain text.
        TooLargeError: by its header, or as soon as too many bytes have come.
    """
    media_type = require_media_type(
        request,
        MEDIA_TYPES,
        f'Send {{"text": "..."}} on each line as {JSON_LINES}, or one text per line as '
        f"{PLAIN_TEXT}.",
    )
    async with receive(request, MAX_BODY_BYTES, _too_large) as body:
        yield ReceivedTexts(body.content, media_type)


Upload = Annotated[ReceivedTexts, Depends(read_texts, scope="function")]


def _too_large(size: str) -> TooLargeError:
    return TooLargeError(
        f"The probe set is {size}, the limit is {MAX_BODY_BYTES} bytes. Send less."
    )
